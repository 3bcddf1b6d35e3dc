"""The one way to weights: what is published, where it is, and how a file is fetched, verified and read."""
