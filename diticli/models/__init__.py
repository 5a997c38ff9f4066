"""Networks and the pipeline that bundles them."""

import logging

# xformers warns at import where it finds no CUDA, and diffusers imports it whenever it is installed.
logging.getLogger("xformers").setLevel(logging.ERROR)
