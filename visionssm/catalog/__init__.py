"""What there is: models and their cost, published files, configs, and what this machine offers."""
