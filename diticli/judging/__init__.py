"""How faithful are edits? A reader that knows nothing of the model says what they changed."""
