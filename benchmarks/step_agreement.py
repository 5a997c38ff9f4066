"""One case of the training benchmark, and the check that both sides of it compute the same losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.agreement import BF16_FACTOR, Errors, Gate, compare, exact_fp32, relative
from benchmarks.cases import Case
from benchmarks.official_side import OfficialModel, OfficialTrainer, in_our_names
from benchmarks.our_side import Heard, OurTrainer
from diticli.models.pipeline import DiTiPipeline, normalise

MODES = {"base": "cumulative", "stop_grad": "detached"}
CHECK_IMAGES = 8
DRAWS = 2
LOSS_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One case as it is measured."""

    case: Case
    batch_size: int
    device: torch.device
    pipeline: Callable[[], DiTiPipeline]
    model: OfficialModel | None
    images: torch.Tensor
    precision: str
    compile: bool
    heard: Heard = field(default_factory=Heard)

    def ours(self, *, batch_size: int = 0, **changes: Any) -> OurTrainer:
        """Our trainer, with one thing changed."""
        options: dict[str, Any] = {
            "precision": self.precision,
            "compile": self.compile,
            "reporter": self.heard,
            **changes,
        }
        size = min(batch_size or self.batch_size, len(self.images))
        return OurTrainer(
            self.case, self.pipeline(), self.images[:size], self.device, batch_size=size, **options | changes
        )

    @property
    def check_images(self) -> int:
        """Images of the agreement check; all of them where that spares compiling for another shape."""
        return self.batch_size if self.compile else min(CHECK_IMAGES, self.batch_size)

    def official(self, **options: Any) -> OfficialTrainer:
        """The official trainer."""
        assert self.model is not None
        return OfficialTrainer(self.model, self.device, **{"batch_size": self.batch_size} | options)


def check_agreement(setting: Setting) -> Gate:
    """Losses and gradients of both gradient modes in fp32 and, where we train in it, in bf16.

    Where ours is compiled, the bf16 check of the first mode runs the very graph that is timed.
    """
    gate = Gate()
    if setting.model is None:
        return _check_against_reference(setting, gate)
    for theirs, ours in MODES.items():
        with exact_fp32():
            right = _official_gradients(setting, theirs, "fp32")
            gate.check_fp32(f"fp32 {ours}", _our_errors(setting, right, gradient=ours, precision="fp32", compile=False))
        if setting.precision == "bf16":
            own = _errors(_official_gradients(setting, theirs, "bf16"), right)
            compile = setting.compile and theirs == "base"
            found = _our_errors(setting, right, gradient=ours, compile=compile)
            gate.check(f"bf16 {ours}: gradient", found.gradient, BF16_FACTOR * own.gradient)
    if setting.precision == "bf16":
        gate.check("bf16 loss", *_bf16_losses(setting))
    return gate


def _bf16_losses(setting: Setting) -> tuple[float, float]:
    """Error of our losses in bf16 and its limit; rounding errors of few images are too much a matter of luck."""
    right, theirs = setting.official(), setting.official(precision="bf16")
    ours = setting.ours(batch_size=setting.check_images)
    found: list[list[torch.Tensor]] = [[], [], []]
    for draw in range(-(-LOSS_SAMPLES // setting.check_images)):
        x0, t, noise = _draw(setting, draw)
        with exact_fp32():
            torch.manual_seed(draw)
            found[0].append(right.losses(x0)[1].detach().mean(dim=(1, 2, 3)))
        torch.manual_seed(draw)
        found[1].append(theirs.losses(x0)[1].detach().float().mean(dim=(1, 2, 3)))
        found[2].append(ours.losses(x0, t, noise).detach())
    exact, autocast, own = (torch.cat(parts) for parts in found)
    return relative(own, exact), BF16_FACTOR * relative(autocast, exact)


def _check_against_reference(setting: Setting, gate: Gate) -> Gate:
    """Without the official code: our step against itself in fp32, uncompiled, by the reference operations."""
    with exact_fp32():
        plain = setting.ours(
            batch_size=setting.check_images, precision="fp32", compile=False, environment={"DITI_KERNELS": "reference"}
        )
        right = [plain.gradients(*_draw(setting, draw)) for draw in range(DRAWS)]
        gate.check_fp32("fp32 against reference operations", _our_errors(setting, right, precision="fp32"))
    return gate


_Gradients = tuple[torch.Tensor, dict[str, torch.Tensor]]


def _draw(setting: Setting, draw: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x0, t, noise), exactly as the official loss draws them after `torch.manual_seed(draw)`."""
    x0 = normalise(setting.images[: setting.check_images].to(setting.device))
    torch.manual_seed(draw)
    t = torch.randint(0, 1000, (len(x0),), device=setting.device, dtype=torch.long)
    return x0, t, torch.randn_like(x0)


def _official_gradients(setting: Setting, mode: str, precision: str) -> list[_Gradients]:
    trainer, found = setting.official(mode=mode, precision=precision), []
    for draw in range(DRAWS):
        x0 = _draw(setting, draw)[0]
        torch.manual_seed(draw)
        losses, encoder, decoder = trainer.gradients(x0)
        found.append((losses, in_our_names(setting.case, encoder, decoder)))
    return found


def _our_errors(setting: Setting, right: list[_Gradients], **changes: Any) -> Errors:
    trainer = setting.ours(batch_size=setting.check_images, **changes)
    return _errors([trainer.gradients(*_draw(setting, draw)) for draw in range(DRAWS)], right)


def _errors(got: list[_Gradients], right: list[_Gradients]) -> Errors:
    """Errors over all draws together."""
    losses = [torch.cat([found[0] for found in side]) for side in (got, right)]
    gradients = [
        {name: torch.stack([found[1][name] for found in side]) for name in right[0][1]} for side in (got, right)
    ]
    return compare(losses[0], gradients[0], losses[1], gradients[1])
