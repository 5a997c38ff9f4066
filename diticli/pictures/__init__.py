"""Grids, captions, charts and HTML pages: what people look at. Knows nothing of models or training."""
