"""Small real data sets, made on the spot: digits, and scenes of digits."""
