"""The frozen base's own features: pooled activations of one of its blocks on a noisy image, without any training.

Method: DDAE (Xiang et al., ICCV 2023, arXiv 2303.09769): the image is noised to a timestep, the base reads it once, and
the activations of a block, averaged over the picture, are the features.

features = BaseFeatures(pipeline.denoisers()[0], pipeline.schedule, parse_base("base:50"))
features(images)  # uint8 [B, 3, R, R] -> float32 [B, C]

Legend of shape suffixes: B batch, C channels, D dims, H height, W width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from diticli.config import Precision
from diticli.errors import ConfigError
from diticli.models.device import gpu_convolutions, resolve_precision
from diticli.models.frozen import FrozenBase
from diticli.models.identity import weights_digest
from diticli.models.modulation import modulate
from diticli.models.pixels import normalise
from diticli.models.unet import UNet
from diticli.models.unet_forward import run_down_path, run_middle, run_up_level, up_resnets
from diticli.schedule import NoiseSchedule

WORD = "base"
DEFAULT_SHARE = 0.05
"""Of the T timesteps, taken where none is named: t = 50 of 1,000."""
CANDIDATE_SHARES = (0.01, 0.025, 0.05, 0.1, 0.2)
"""Of the T timesteps, between which validation images choose in a comparison, as they do between all blocks."""
_BLOCK = re.compile(r"mid|(?:down|up)[0-9]{1,2}")
_REMEDY = (
    "Write base, base:T or base:T:BLOCK, where BLOCK is mid, down0, down1, ... or up0, up1, ..., e.g. base:50:mid."
)


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """Which activations of the base are meant.

    Attributes:
        timestep: None where it was not named.
        block: "mid", or "down" or "up" with the block's number in the order in which the blocks run.
    """

    timestep: int | None = None
    block: str = "mid"


def parse_base(text: str) -> BaseSpec:
    """What `base[:T[:BLOCK]]` means.

    Raises:
        ConfigError: for anything else.
    """
    word, *rest = text.strip().lower().split(":")
    timestep = rest[0] if rest else ""
    block = rest[1] if len(rest) > 1 else "mid"
    known = word == WORD and len(rest) <= 2 and (not rest or re.fullmatch("[0-9]{1,6}", timestep, re.ASCII))
    if not known or not _BLOCK.fullmatch(block):
        raise ConfigError(f"{text!r} names no features of the base.", remedy=_REMEDY)
    return BaseSpec(timestep=int(timestep) if timestep else None, block=block)


def candidate_timesteps(timesteps: int) -> tuple[int, ...]:
    """Those between which a comparison chooses, of a base with so many."""
    return tuple(sorted({round(share * timesteps) for share in CANDIDATE_SHARES} & {*range(timesteps)}))


def describe_features(timesteps: Sequence[int], blocks: Sequence[str]) -> dict[str, Any]:
    """What the metadata of a feature file says of them."""
    of_t = {"timestep": timesteps[0]} if len(timesteps) == 1 else {"timesteps": list(timesteps)}
    of_b = {"block": blocks[0]} if len(blocks) == 1 else {"blocks": list(blocks)}
    return {"features": WORD, **of_t, **of_b, "pooling": "mean", "noise": "seeded by the pixels"}


class BaseFeatures:
    """uint8 images -> float32 features, on the base's device; side by side for several timesteps and blocks.

    The noise of an image is drawn from a hash of its pixels, and it is the same at all timesteps. So the features of
    an image depend on the image alone, not on its place in a batch or in the data.

    Args:
        unet: the base; left as it is.
        schedule: of its noise.
        spec: which block, and which timestep unless `timesteps` are given.
        timesteps: several, whose features follow one another in the columns.
        blocks: several, whose features follow one another within those of each timestep.
        precision: auto takes bf16 where the hardware computes in it.

    Attributes:
        timesteps: whose features these are.
        blocks: whose activations these are.
        device: of the base.
        precision: "fp32" or "bf16".

    Raises:
        ConfigError: for a block or a timestep that the base does not have.
        DeviceError: when bf16 is asked for on a GPU without it.
    """

    def __init__(
        self,
        unet: UNet,
        schedule: NoiseSchedule,
        spec: BaseSpec,
        *,
        timesteps: Sequence[int] = (),
        blocks: Sequence[str] = (),
        precision: Precision = "auto",
    ) -> None:
        named = spec.timestep if spec.timestep is not None else round(DEFAULT_SHARE * schedule.timesteps)
        self.timesteps, self.blocks = tuple(timesteps) or (named,), tuple(blocks) or (spec.block,)
        for block in self.blocks:
            block_width(unet, block)
        check_timesteps(self.timesteps, schedule.timesteps)
        self.device = unet.device
        self.precision = resolve_precision(precision, self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self._base = FrozenBase(unet, torch.bfloat16 if self.precision == "bf16" else torch.float32)
        self._schedule = schedule

    @torch.no_grad()
    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Features [B, D], float32 on the device, of uint8 images [B, 3, R, R]."""
        noise_BCHW = pixel_noise(images_BCHW).to(self.device)
        x0_BCHW = normalise(images_BCHW.to(self.device))
        return torch.cat([self._at(t, x0_BCHW, noise_BCHW) for t in self.timesteps], dim=1)

    def _at(self, timestep: int, x0_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
        t_1 = torch.full((1,), timestep, device=self.device)
        x_BCHW = self._schedule.add_noise(x0_BCHW, noise_BCHW, t_1)
        exact = gpu_convolutions(self.device, self._base.dtype)
        with exact, torch.autocast(self.device.type, enabled=False):
            found = activations(self._base, x_BCHW, t_1, self.blocks)
            return torch.cat([found[block].float().mean(dim=(2, 3)) for block in self.blocks], dim=1)


def activations(
    base: FrozenBase, x_BCHW: torch.Tensor, t_1: torch.Tensor, blocks: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Outputs [B, C, H, W] of blocks by name, in the base's dtype; what comes after the last of them is not computed.

    Args:
        base: an inference copy.
        x_BCHW: noisy images.
        t_1: timestep of all of them, [1].
        blocks: see `BaseSpec`.
    """
    unet = base.unet
    down = run_down_path(unet, x_BCHW.to(base.dtype), t_1, base.weights("down"))
    ends = list(accumulate(_skip_counts(unet)))
    found = {block: down.skips[ends[int(block[4:])]] for block in blocks if block.startswith("down")}
    later = set(blocks) - set(found)
    if not later:
        return found
    modulations = modulate(up_resnets(unet), base.weights("up"), down.temb)
    h, remaining = run_middle(unet, down.hidden, modulations), list(down.skips)
    found["mid"] = h
    for number, level in enumerate(unet.up_blocks):
        if later <= set(found):
            break
        found[f"up{number}"] = h = run_up_level(level, h, remaining, modulations)  # type: ignore[arg-type]
    return found


def block_widths(unet: UNet) -> dict[str, int]:
    """Channels of each block's output, in the order in which the blocks run."""
    widths = [int(width) for width in unet.config.block_out_channels]
    names = {f"down{i}": width for i, width in enumerate(widths)} | {"mid": widths[-1]}
    return names | {f"up{i}": width for i, width in enumerate(reversed(widths))}


def block_width(unet: UNet, block: str) -> int:
    """Channels of a block's output.

    Raises:
        ConfigError: for a block that the base does not have.
    """
    names = block_widths(unet)
    if block not in names:
        raise ConfigError(f"The base has no block {block!r}.", remedy=f"Name one of {', '.join(names)}.")
    return names[block]


def check_timesteps(wanted: Sequence[int], timesteps: int) -> None:
    """Refuse timesteps that a base with so many does not have.

    Raises:
        ConfigError: with the first of them.
    """
    if beyond := [t for t in wanted if not 0 <= t < timesteps]:
        raise ConfigError(f"The base has no timestep {beyond[0]}.", remedy=f"Name one of 0 to {timesteps - 1}.")


def base_hash(unet: UNet, schedule: NoiseSchedule) -> str:
    """Hash of the base's weights, settings and noise schedule: features of the base are not those of an encoder."""
    text = f"{WORD} {sorted(unet.config.items(), key=str)} {schedule.alphas_cumprod.tolist()}"
    return weights_digest({"unet": unet}, text)


def pixel_noise(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Gaussian noise [B, C, H, W], float32 on the CPU, of each uint8 image: drawn from a hash of its pixels."""
    drawn = []
    for image_CHW in images_BCHW.cpu():
        digest = hashlib.sha256(image_CHW.contiguous().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn.append(torch.randn(image_CHW.shape, generator=generator))
    return torch.stack(drawn)


def _skip_counts(unet: UNet) -> list[int]:
    """Skips of each down block; the first convolution's is index 0, so sums of these are indices of outputs."""
    levels: list[Any] = list(unet.down_blocks)
    return [len(level.layers()) + (level.resampler() is not None) for level in levels]
