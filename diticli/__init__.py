"""DiTi: modular image features from diffusion timesteps (arXiv 2401.11430).

    from diticli import DiTiPipeline
    features = DiTiPipeline.from_pretrained("runs/demo").encode(images)

Heavy names are resolved on first use, so that `import diticli` and `diti --help` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diticli._version import __version__

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout
    from diticli.features.read import load_features
    from diticli.models.encoder import SemanticEncoder
    from diticli.models.pipeline import DiTiPipeline
    from diticli.models.shift_decoder import ShiftDecoder
    from diticli.models.unet import UNet

_LAZY = {
    "ChunkLayout": "diticli.chunks",
    "DiTiPipeline": "diticli.models.pipeline",
    "SemanticEncoder": "diticli.models.encoder",
    "ShiftDecoder": "diticli.models.shift_decoder",
    "UNet": "diticli.models.unet",
    "load_features": "diticli.features.read",
}

__all__ = ["ChunkLayout", "DiTiPipeline", "SemanticEncoder", "ShiftDecoder", "UNet", "__version__", "load_features"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'diticli' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, also those that are not loaded yet."""
    return sorted(__all__)
