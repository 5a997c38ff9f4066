"""Evaluation of edits: an attribute classifier trained without the model measures what they change."""
