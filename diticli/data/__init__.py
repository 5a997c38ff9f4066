"""Where images, labels and features come from."""
