"""Model cards: the pages and pictures of `model_cards/`."""
