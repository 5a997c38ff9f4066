"""Encode images into feature files with a trained model."""
