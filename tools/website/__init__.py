"""What the pages of the documentation hold that is made from the source."""
