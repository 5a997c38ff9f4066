"""Experiments: longer questions about the project, asked by hand and not by its continuous integration."""
