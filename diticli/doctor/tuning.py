"""What `diti doctor` reports on kernels that were tried on this GPU, and how `--tune` tries those of all presets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diti_kernels.sites import Mode, Site, is_measured
from torch import nn

from diticli.doctor.finding import Finding
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.errors import DeviceError
from diticli.models.build import build_unet, new_scheduler
from diticli.models.device import global_generators_kept
from diticli.models.frozen import FrozenPair
from diticli.progress import Reporter, SilentReporter, WarningReporter
from diticli.schedule import NoiseSchedule
from diticli.settings import build_config, preset_names
from diticli.training.accelerator import resolve
from diticli.training.objectives import FeatureObjective, NoiseObjective
from diticli.training.stage_two import build_objective
from diticli.tuning.cache import TuningCache, Verdict, environment
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
    """Try the operations of all presets' training, encoding and editing, whatever is known already left out.

    Raises:
        DeviceError: on a CPU.
    """
    if not is_measured(device.type):
        raise DeviceError(f"There is nothing to tune on {device}.", remedy="Name a GPU: --device cuda.")
    sites = dict.fromkeys(site for preset in preset_names() for site in preset_sites(preset, device, reporter))
    decide(list(sites), device, TUNE_SECONDS, reporter)


def preset_sites(preset: str, device: torch.device, reporter: Reporter | None = None) -> list[Site]:
    """The sites of a preset's second stage and of its base's training, of encoding, and of editing a pair."""
    config = resolve(build_config(preset, options={"device": str(device)}))
    with global_generators_kept(device):
        unet, scheduler = build_unet(config.unet, config.data.resolution), new_scheduler()
        features = build_objective(config, unet, scheduler).to(device).train()
    assert isinstance(features, FeatureObjective)
    base = NoiseObjective(unet, NoiseSchedule.from_scheduler(scheduler)).to(device).train()
    encoder = BatchEncoder(features.encoder, config.precision)
    pair = FrozenPair(unet, features.shift_decoder, torch.float32)
    side, latent_dim = config.data.resolution, features.encoder.config.latent_dim
    mode: Mode = "compiled" if config.compile else "eager"

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def trained(objective: nn.Module, count: int) -> list[Site]:
        def step() -> object:
            images, t_B = zeros(count, 3, side, side), zeros(count, dtype=torch.int64)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                return objective(images, t_B, images)

        return sites_of(step, mode, reporter)

    @torch.no_grad()
    def encode() -> object:
        return encoder._features(zeros(config.features.batch_size, 3, side, side, dtype=torch.uint8))

    @torch.no_grad()
    def sample() -> object:
        t_1 = zeros(1, dtype=torch.int64)
        z_mod = pair.shift.project(zeros(EDITED, latent_dim), t_1, features.windows)
        return pair._estimate(zeros(EDITED, 3, side, side), t_1, z_mod, zeros())

    return [
        *trained(features, config.features.batch_size),
        *trained(base, config.base.batch_size),
        *sites_of(encode, "eager", reporter),
        *sites_of(sample, "captured", reporter),
    ]


class _Complaints(WarningReporter):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        """See `Reporter.warn`."""
        self.warnings.append(message)
