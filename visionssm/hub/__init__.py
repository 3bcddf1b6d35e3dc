"""Folders of weights as the Hub stores them: convert checkpoints to them, describe and publish them."""
