"""What people do with a trained model: classify, extract features, score, check this machine."""
