"""Models and baselines under one protocol: the same images, split and probe, one table, one report."""
