"""What `diti doctor` reports on kernels that were tried on this GPU, and how `--tune` tries those of all presets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from diti_kernels.sites import Mode, Site, is_measured
from torch import nn

from diticli.config import RunConfig
from diticli.doctor.finding import Finding
from diticli.editing.settings import EditSettings
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.errors import DeviceError
from diticli.models.build import build_unet, new_scheduler
from diticli.models.compiled import StepGraph, compiler_for, may_capture_steps
from diticli.models.device import global_generators_kept, resolve_precision
from diticli.models.frozen import FrozenPair
from diticli.progress import Reporter, SilentReporter
from diticli.sampling.defaults import DEFAULT_PRECISION, DEFAULT_SOLVER
from diticli.schedule import NoiseSchedule
from diticli.settings import build_config, preset_names
from diticli.training.accelerator import resolve
from diticli.training.objectives import FeatureObjective, NoiseObjective
from diticli.training.stage_two import build_objective
from diticli.tuning.cache import TuningCache, Verdict, environment
from diticli.tuning.compiling import encoding_site, sampling_site, training_site, try_compiling
from diticli.tuning.tune import REPORT_TO, decide, describe, indexed, sites_of

TUNE_SECONDS = 1200.0
EDITED = 2
"""Images of an edit whose sampler is tried: a pair, captured as a CUDA graph."""


def verdicts(device: torch.device, reporter: Reporter | None = None) -> tuple[list[Verdict], int]:
    """What is known of this device, and the number of results of other environments."""
    return TuningCache(environment(indexed(device)), reporter or SilentReporter()).all()


def tuning(device: torch.device) -> Iterator[Finding]:
    """A finding for every site that was tried on this device; none on a CPU, where nothing is tried."""
    if not is_measured(device.type):
        return
    heard = _Complaints()
    found, others = verdicts(device, heard)
    for text in heard.warnings:
        yield Finding(topic="tuning", name="cache", value=text, status="note", remedy="Delete it.")
    if others:
        value = f"{others} results of another GPU, driver, library or version of diti, which are not used"
        yield Finding(topic="tuning", name="cache", value=value)
    if not found:
        yield Finding(
            topic="tuning",
            name="kernels",
            value="nothing was tried on this GPU yet, so the reference runs",
            status="note",
            remedy="Training, encoding and editing try what they need; diti doctor --tune tries all presets.",
        )
    for verdict in found:
        right = verdict.outcome == "right"
        yield Finding(
            topic="tuning",
            name=verdict.site.name,
            value=describe(verdict),
            status="ok" if right else "note",
            remedy="" if right else REPORT_TO,
        )


def rows(device: torch.device) -> list[dict[str, Any]]:
    """The same for programs: a row for each site."""
    if not is_measured(device.type):
        return []
    return [{"name": v.site.name, **v.to_dict(), "ratio": v.ratio} for v in verdicts(device)[0]]


def tune_presets(device: torch.device, reporter: Reporter) -> None:
    """Try the operations of all presets' training, encoding and editing, then compiling; what is known is left out.

    Raises:
        DeviceError: on a CPU.
    """
    if not is_measured(device.type):
        raise DeviceError(f"There is nothing to tune on {device}.", remedy="Name a GPU: --device cuda.")
    sites: dict[Site, None] = {}
    for preset in preset_names():
        sites |= dict.fromkeys(Networks.of_preset(preset, device).sites(reporter))
    decide(list(sites), device, TUNE_SECONDS, reporter)
    for preset in preset_names():
        Networks.of_preset(preset, device).try_compiling(reporter)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Those of a preset on a device, with random weights."""

    config: RunConfig
    device: torch.device
    base: NoiseObjective
    features: FeatureObjective
    encoder: BatchEncoder
    pair: FrozenPair

    @classmethod
    def of_preset(cls, preset: str, device: torch.device) -> Self:
        """Built anew.

        Raises:
            ConfigError: for an unknown preset.
        """
        config = resolve(build_config(preset, options={"device": str(device)}))
        with global_generators_kept(device):
            unet, scheduler = build_unet(config.unet, config.data.resolution), new_scheduler()
            features = build_objective(config, unet, scheduler).to(device).train()
        assert isinstance(features, FeatureObjective)
        base = NoiseObjective(unet, NoiseSchedule.from_scheduler(scheduler)).to(device).train()
        bf16 = resolve_precision(DEFAULT_PRECISION[DEFAULT_SOLVER], device) == "bf16"
        return cls(
            config=config,
            device=device,
            base=base,
            features=features,
            encoder=BatchEncoder(features.encoder, config.precision),
            pair=FrozenPair(unet, features.shift_decoder, torch.bfloat16 if bf16 else torch.float32),
        )

    def sites(self, reporter: Reporter | None = None) -> list[Site]:
        """The sites of training both stages, of encoding, and of editing a pair."""
        batches, mode = self.config.features.batch_size, self._mode
        base, encoded = self.config.base.batch_size, self._bytes(batches)
        return [
            *sites_of(lambda: self._losses(self.features, batches), mode, reporter),
            *sites_of(lambda: self._losses(self.base, base), mode, reporter),
            *sites_of(lambda: self._encode(encoded), "eager", reporter),
            *sites_of(lambda: self._sample(EDITED), "captured", reporter),
        ]

    def try_compiling(self, reporter: Reporter) -> None:
        """Time a training step, a batch of encoding and a sampler's step, uncompiled and compiled, unless known."""
        config, device = self.config, self.device
        batch, side = config.features.batch_size, config.data.resolution
        compiler, twin = compiler_for(reporter), copy.deepcopy(self.features)
        twin.compile_parts(compiler)

        def step(objective: nn.Module) -> object:
            parameters = [p for p in objective.parameters() if p.requires_grad]
            return torch.autograd.grad(self._losses(objective, batch).mean(), parameters, allow_unused=True)

        captures = may_capture_steps(device, processes=1, views=False)
        plain = _Captured(lambda _: step(self.features), device) if captures else lambda: step(self.features)
        site = training_site(config, captures=captures)
        try_compiling(site, plain, lambda: step(twin), device, reporter)
        with torch.no_grad():
            images, features = self._bytes(batch), self.encoder._features
            compiled = compiler("encoder", features)
            site = encoding_site(self.features.encoder, batch, self.encoder.precision)
            try_compiling(site, lambda: features(images), lambda: compiled(images), device, reporter)

            count, estimate = EditSettings().default_batch_size(side, device.type), self.pair._estimate
            inputs, compiled_step = self._step_inputs(count), compiler("sampler's step", estimate)
            site = sampling_site(self.base.unet, self.features.shift_decoder, count, side, self.pair.base.dtype)
            try_compiling(site, lambda: estimate(*inputs), lambda: compiled_step(*inputs), device, reporter)
        torch.compiler.reset()

    @property
    def _mode(self) -> Mode:
        if self.config.compile:
            return "compiled"
        return "captured" if may_capture_steps(self.device, processes=1, views=False) else "eager"

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _bytes(self, count: int) -> torch.Tensor:
        return self._zeros(count, 3, self.config.data.resolution, self.config.data.resolution, dtype=torch.uint8)

    def _losses(self, objective: nn.Module, count: int) -> torch.Tensor:
        images = self._bytes(count).float()
        t_B = self._zeros(count, dtype=torch.int64)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses: torch.Tensor = objective(images, t_B, images)
        return losses

    @torch.no_grad()
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder._features(images)

    @torch.no_grad()
    def _sample(self, count: int) -> torch.Tensor:
        return self.pair._estimate(*self._step_inputs(count))

    def _step_inputs(self, count: int) -> tuple[torch.Tensor, ...]:
        t_1, latent_dim = self._zeros(1, dtype=torch.int64), self.features.encoder.config.latent_dim
        z_mod = self.pair.shift.project(self._zeros(count, latent_dim), t_1, self.features.windows)
        return self._bytes(count).float(), t_1, z_mod, self._zeros()


class _Captured:
    """A training step as one CUDA graph, captured when it is first called."""

    def __init__(self, step: Callable[[torch.Tensor], object], device: torch.device) -> None:
        self.step, self.device = step, device
        self.graph: StepGraph | None = None

    def __call__(self) -> object:
        if self.graph is None:
            self.graph = StepGraph(self.step, torch.zeros(1, device=self.device), gradients=True)
        return self.graph.replay()


class _Complaints(SilentReporter):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        """See `Reporter.warn`."""
        self.warnings.append(message)
