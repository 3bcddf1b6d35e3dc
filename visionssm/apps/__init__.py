"""What one does with a trained model: classify, extract features, score; and check this machine."""
