"""Edits of images: pairs, attributes, reconstructions, and tables of pairs."""
