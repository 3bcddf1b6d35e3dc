"""Folders of weights as they lie on the Hub: convert checkpoints to them, describe them, publish them."""
