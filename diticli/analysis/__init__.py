"""What one does with a trained model: encode, probe, edit, report."""
