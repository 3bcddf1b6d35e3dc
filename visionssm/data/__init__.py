"""Small real data sets that are made on the spot: digits, and scenes of digits."""
