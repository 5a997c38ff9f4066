"""How faithful are edits? A classifier that knows nothing of the model says what they changed."""
