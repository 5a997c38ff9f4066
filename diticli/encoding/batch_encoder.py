"""The encoder as batch encoding runs it: a copy in one precision, compiled where asked.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim.
"""

from __future__ import annotations

import copy

import torch
from diti_kernels.sites import Mode, is_measured
from torch import nn

from diticli.config import Precision
from diticli.models.compiled import CompilablePart, CompiledPart
from diticli.models.device import gpu_convolutions, resolve_precision
from diticli.models.encoder import SemanticEncoder
from diticli.models.layout import layout_for
from diticli.models.pixels import normalise
from diticli.progress import LoggingReporter, Reporter

MAP_VALUES = 1 << 21
"""Values of the largest maps of the images that a thread of a CPU encodes at once in float32.

Larger maps go through memory that the system clears anew for every batch: 128 images of 64 px took 1.36 times as long
in one call as 32 at a time (Xeon with AVX-512, one thread).
"""


class BatchEncoder:
    """uint8 images -> float32 features, on the encoder's device.

    In bf16 convolutions and attention compute in bf16, norms and the head's sums in float32; the features of a
    trained faces32 encoder then differ from its float32 ones by 0.09 % of their norm (training's own autocast: by
    0.19 %), at 2.0 to 2.3 times the speed on a CPU that has bf16.

    Args:
        encoder: left as it is; later changes of its weights are not seen.
        precision: auto takes bf16 where the hardware computes in it.
        compile: with torch.compile, for batches of the first one's size.
        reporter: hears of what pauses the first batch: trying kernels, compiling. By default that is logged.

    Attributes:
        device: of the encoder.
        precision: "fp32" or "bf16".

    Raises:
        DeviceError: when bf16 is asked for on a GPU without it.
    """

    def __init__(
        self,
        encoder: SemanticEncoder,
        precision: Precision = "auto",
        *,
        compile: bool = False,
        reporter: Reporter | None = None,
    ) -> None:
        self.device = encoder.device
        self.precision = resolve_precision(precision, self.device)
        self._dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._encoder = _inference_copy(encoder, self._dtype)
        self._reporter = reporter or LoggingReporter()
        self._compiled: CompilablePart | None = (
            CompiledPart("encoder", self._features, self._reporter) if compile else None
        )
        self._usual_size = 0
        self._tuned: set[int] = set()
        widest = self._encoder.config.widths[0] * (self._encoder.config.sample_size // 2) ** 2
        self._at_once = max(1, MAP_VALUES // widest) if self.device.type == "cpu" and self.precision == "fp32" else 0

    @torch.no_grad()
    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Features [B, D], float32 on the device, of uint8 images [B, 3, R, R]; does not wait for the device."""
        images_BCHW = images_BCHW.to(self.device, non_blocking=True)
        self._usual_size = self._usual_size or len(images_BCHW)
        usual = len(images_BCHW) == self._usual_size
        compiled = self._compiled if usual else None
        if is_measured(self.device.type) and len(images_BCHW) not in self._tuned:
            from diticli.tuning.tune import tune_alone  # here, as it takes time and needs a GPU

            self._tuned.add(len(images_BCHW))
            mode: Mode = "eager" if compiled is None else "compiled"
            tune_alone(lambda: self._features(images_BCHW), self.device, mode, self._reporter)
        encode = self._features if compiled is None else compiled
        with gpu_convolutions(self.device, self._dtype, timed=usual):
            features_BD: torch.Tensor = encode(images_BCHW)
        return features_BD

    def _features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        if self._at_once and not torch.compiler.is_compiling():  # a compiler cannot read the number of threads
            parts = images_BCHW.split(self._at_once * torch.get_num_threads())
            with torch.inference_mode():  # where weights that were transformed once are kept
                features = [self._encoder(normalise(part)) for part in parts]
            return torch.cat(features)  # an ordinary tensor
        features_BD: torch.Tensor = self._encoder(normalise(images_BCHW).to(self._dtype))
        return features_BD


def _inference_copy(encoder: SemanticEncoder, dtype: torch.dtype) -> SemanticEncoder:
    """Convolutions and attention in `dtype`; the head in float32, for the result is not rounded to bf16 then."""
    twin = copy.deepcopy(encoder).requires_grad_(False).eval()
    for module in twin.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module is not twin.head:
            module.to(dtype)
    twin.head.register_forward_pre_hook(_in_float32)
    return twin.to(memory_format=layout_for(encoder.device, dtype))  # type: ignore[call-overload]


def _in_float32(head: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (arguments[0].float(),)
