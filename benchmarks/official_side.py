"""The official code, run from outside: its modules, loss and sampler, in the order in which its scripts use them.

The code is not part of this repository; `--official PATH` says where a checkout lies. Nothing of it is changed. Its
trainer needs NCCL and a GPU, so the trainer's own few calls (zero_grad, loss, backward, Adam, moving average) are made
here, on its modules. Left out, all in its favour: the DistributedDataParallel wrapper, the pass of two augmented views
of 512 images through the encoder, whose loss its configs weight by zero, and progress bars.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.cases import DIFFUSION, SEED, TIMESTEPS, Case
from diticli.errors import DiTiError
from diticli.official.weights import from_official


class OfficialCodeError(DiTiError):
    """The folder given by --official is not a checkout of the official code, or cannot be imported."""


@dataclass(frozen=True, kw_only=True)
class OfficialCode:
    """The classes and functions of the official code that are run."""

    diffusion: Any
    base: Any
    decoder: Any
    encoders: Any
    uniform_masks: Any
    staged_masks: Any


def load_code(path: Path) -> OfficialCode:
    """Import the official modules from a checkout.

    Raises:
        OfficialCodeError: when there are none, or a package they need is missing.
    """
    if not (path / "model" / "unet" / "shift_unet.py").is_file():
        raise OfficialCodeError(
            f"{path} is no checkout of the official DiTi code: it has no model/unet/shift_unet.py.",
            remedy="Clone it outside this repository and pass that folder as --official.",
        )
    with _importable(path):
        try:
            masks = importlib.import_module("eval.src.masked_diffusion")
            sampling = importlib.import_module("model.diffusion.gaussian_diffusion")
            sampling.tqdm = _without_bar  # type: ignore[attr-defined]
            return OfficialCode(
                diffusion=sampling.GaussianDiffusion,
                base=importlib.import_module("model.unet").UNet,
                decoder=importlib.import_module("model.unet").ShiftUNet,
                encoders=importlib.import_module("model.representation.encoder"),
                uniform_masks=masks.uni_masks,
                staged_masks=masks.ueq_masks,
            )
        except ImportError as error:
            raise OfficialCodeError(
                f"The official code in {path} cannot be imported: {error}.", remedy="Install what it needs."
            ) from error


def _without_bar(steps: Iterable[Any], **options: Any) -> Iterable[Any]:
    """Its sampler's progress bar, which would write into the tables."""
    return steps


@contextlib.contextmanager
def _importable(path: Path) -> Iterator[None]:
    """Its packages are called `model` and `eval`: findable within the block only, and from this checkout only."""
    for name in [m for m in sys.modules if m.split(".")[0] in ("model", "eval")]:
        if str(path) not in str(getattr(sys.modules[name], "__file__", "") or path):
            del sys.modules[name]
    sys.path.insert(0, str(path))
    try:
        yield
    finally:
        sys.path.remove(str(path))


class OfficialModel:
    """Encoder, decoder, diffusion and masks of one size, with seeded random weights and nothing left at zero."""

    def __init__(self, code: OfficialCode, case: Case) -> None:
        self.code, self.case = code, case
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.encoder: nn.Module = getattr(code.encoders, case.encoder)(latent_dim=case.latent_dim)
            self.decoder: nn.Module = code.decoder(latent_dim=case.latent_dim, **case.denoise_fn)
            for parameter in self.decoder.parameters():
                if parameter.ndim > 1 and not parameter.any():
                    # Its last convolutions start at zero, which would hide most of the network from a comparison.
                    parameter.data.normal_(std=0.5 / math.sqrt(parameter[0].numel()))

    def save(self, folder: Path) -> Path:
        """A run folder as the official code writes it, for our converter."""
        folder.mkdir(parents=True, exist_ok=True)
        self.case.write_configs(folder)
        weights = {"ema_encoder": self.encoder.state_dict(), "ema_decoder": self.decoder.state_dict()}
        torch.save(weights, folder / "checkpoint.pt")
        return folder

    def base(self) -> nn.Module:
        """The official class of the base alone, with the decoder's weights of it."""
        with torch.random.fork_rng(devices=[]):
            base: nn.Module = self.code.base(**self.case.denoise_fn)
        weights = self.decoder.state_dict()
        base.load_state_dict({name: weights[name] for name in base.state_dict()})
        return base

    def masks(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Chunk of a timestep [T], and prefix, own and earlier dims of a chunk [K, d]."""
        k, d = int(self.case.chunks["k"]), self.case.latent_dim
        if "dims_per_stage" in self.case.chunks:  # on the CPU: it reads thousands of single numbers
            prefix, own = self.code.staged_masks(k, d, "cpu", self.case.chunks)
        else:
            prefix, own = self.code.uniform_masks(k, d, "cpu")
        chunk_T = torch.tensor([int(float(t) / (float(TIMESTEPS) / k)) for t in range(TIMESTEPS)])
        tables = (chunk_T, prefix, own, prefix - own)
        return tuple(table.to(device) for table in tables)


class OfficialTrainer:
    """One training step of the official code.

    Args:
        model: its networks; copied.
        device: where it runs.
        precision: "fp32" as its configs have it, or "bf16" for autocast.
        compiled: its own --compile.
        tuned: ours to help it: channels_last on a GPU, fused Adam, foreach moving average, masks uploaded once, and no
            reading of losses on the host. (On a CPU the layout stays: PyTorch's group norm is not safe in the other.)
        mode: its `pdae_mode`.
        batch_size: of the step, for its learning rate.
    """

    def __init__(
        self,
        model: OfficialModel,
        device: torch.device,
        *,
        batch_size: int,
        precision: str = "fp32",
        compiled: bool = False,
        tuned: bool = False,
        mode: str = "base",
    ) -> None:
        self.device, self.precision, self.tuned, self.mode = device, precision, tuned, mode
        self.diffusion = model.code.diffusion(DIFFUSION, device=device)
        layout = torch.channels_last if tuned and device.type == "cuda" else torch.preserve_format
        self.encoder, self.decoder = (
            in_layout(copy.deepcopy(part), device, layout) for part in (model.encoder, model.decoder)
        )
        self.average = [copy.deepcopy(part).requires_grad_(False).eval() for part in (self.decoder, self.encoder)]
        pairs = zip((self.decoder, self.encoder), self.average, strict=True)
        self.pairs = [(a, p) for part, ema in pairs for a, p in zip(ema.parameters(), part.parameters(), strict=True)]
        self.pairs = [(a, p) for a, p in self.pairs if p.requires_grad]
        trained = [p for _, p in self.pairs]
        self.optimizer = torch.optim.Adam(trained, lr=1e-4 * batch_size / 32, fused=True if tuned else None)
        self.tables = [table if tuned else table.cpu() for table in model.masks(device)]
        self.layout = layout
        self.encoder.train()
        if compiled:
            self.encoder.compile()
            self.decoder.compile()

    def losses(self, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, loss per element and timesteps of images in [-1, 1]; draws timesteps, then noise."""
        chunk_T, prefix, own, earlier = (table.to(self.device, non_blocking=True) for table in self.tables)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self.diffusion.pdae_timestep_loss(
                encoder=self.encoder,
                decoder=self.decoder,
                x_0=x0.contiguous(memory_format=self.layout),
                t_to_idx=chunk_T,
                masks=prefix,
                k_masks=own,
                receding_masks=earlier,
                mode=self.mode,
            )
        return found

    def step(self, x0: torch.Tensor) -> None:
        """Forward, backward, Adam, moving average, and the reading of losses that its trainer does in every step."""
        self.encoder.train()
        self.decoder.set_train_mode()  # type: ignore[operator]
        self.optimizer.zero_grad()
        loss, elements, t = self.losses(x0)
        if not self.tuned:
            weights = elements.mean(dim=(1, 2, 3)).detach().float().cpu().numpy()
            np.histogram(t.cpu().numpy(), bins=np.arange(1000), weights=weights)
            for _ in range(2):
                loss.item()
        loss.backward()
        self.optimizer.step()
        self._average()

    @torch.no_grad()
    def _average(self, decay: float = 0.9999) -> None:
        self.decoder.eval()
        self.encoder.eval()
        if self.tuned:
            torch._foreach_lerp_([a for a, _ in self.pairs], [p for _, p in self.pairs], 1 - decay)
            return
        for shadow, parameter in self.pairs:
            shadow.mul_(decay).add_(parameter, alpha=1 - decay)

    def gradients(self, x0: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Losses [B], and gradients of encoder and decoder in official names (zero for the frozen base)."""
        loss, elements, _ = self.losses(x0)
        loss.backward()
        named = [
            {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in part.named_parameters()}
            for part in (self.encoder, self.decoder)
        ]
        self.optimizer.zero_grad()
        return elements.detach().float().mean(dim=(1, 2, 3)), named[0], named[1]


def in_layout(module: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """The module on a device in a memory format; its `View` before the linear layer is handed contiguous maps."""
    for part in module.modules():
        if type(part).__name__ == "View":
            part.register_forward_pre_hook(lambda _, inputs: tuple(x.contiguous() for x in inputs))
    module.to(device)
    return module.to(memory_format=layout)  # type: ignore[call-overload]


def in_our_names(
    case: Case, encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gradients in official names -> in ours. Converting only renames and splits, so it holds for gradients too."""
    _, enc, shift = from_official(
        encoder, decoder, case.denoise_fn, encoder_model=case.encoder, latent_dim=case.latent_dim
    )
    parts: dict[str, nn.Module] = {"encoder": enc, "shift_decoder": shift}
    return {f"{part}.{name}": p.detach() for part, m in parts.items() for name, p in m.named_parameters()}
