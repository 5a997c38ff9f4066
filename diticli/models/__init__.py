"""Networks and the pipeline that bundles them."""
