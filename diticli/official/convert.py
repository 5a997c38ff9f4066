"""`convert`: an official run becomes a pipeline folder, a pre-trained DPM becomes a base folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diticli._version import __version__
from diticli.errors import ModelError
from diticli.files import publish_folder, write_json
from diticli.models.encoder import SemanticEncoder
from diticli.models.gate import check_base_config
from diticli.models.pipeline import DDIMScheduler, DiTiPipeline
from diticli.models.shift_decoder import ShiftDecoder
from diticli.models.unet import UNet
from diticli.official.run import OfficialRun, read_official, wrong_values_named
from diticli.official.weights import base_from_official, encoder_from_official, from_official
from diticli.progress import Reporter, SilentReporter

RECORD = "official.json"
_WRITTEN = {RECORD, "model_index.json", "unet", "encoder", "shift_decoder", "scheduler"}


class _Parts(NamedTuple):
    """Our modules with a run's weights."""

    unet: UNet | None = None
    encoder: SemanticEncoder | None = None
    shift_decoder: ShiftDecoder | None = None


@dataclass(frozen=True)
class Converted:
    """A written model and what it was understood to be (also in its `official.json`)."""

    folder: Path
    record: Mapping[str, Any]


def convert(
    official: Path,
    out: Path,
    *,
    ddpm_config: Path | None = None,
    ema: bool = True,
    reporter: Reporter | None = None,
) -> Converted:
    """Write an official run as a `DiTiPipeline`, or a pre-trained DPM as a base (unet/ and scheduler/).

    Args:
        official: run folder or `.pt` file.
        out: folder to write; that of an earlier conversion is replaced. It appears only when it is complete.
        ddpm_config: the pre-trained DPM's config, when it is not where the run's config says.
        ema: take the moving average of the weights.
        reporter: receives what is being done.

    Raises:
        ModelError: for what cannot be read, understood or converted, and when `out` is something else or cannot
            be written.
    """
    reporter = reporter or SilentReporter()
    if os.path.lexists(out) and not is_converted(out):
        raise ModelError(f"{out} is there already, and diti did not make it.", remedy="Choose another -o.")
    run = read_official(official, ddpm_config=ddpm_config, ema=ema)
    for note in run.notes:
        reporter.warn(note)
    reporter.start(f"Converting {run.checkpoint}", 2, "parts")
    with wrong_values_named(official):
        parts = _build(run)
    reporter.advance()
    record = _record(run, parts)
    _publish(out, parts, run, record)
    reporter.advance()
    reporter.finish()
    return Converted(out, record)


def is_converted(out: Path) -> bool:
    """Whether a folder, not a link to one, is what `convert` wrote and holds nothing else."""
    try:
        return not out.is_symlink() and (out / RECORD).is_file() and set(os.listdir(out)) <= _WRITTEN
    except OSError:
        return False


def pipeline_from_official(official: Path, *, ddpm_config: Path | None = None, ema: bool = True) -> DiTiPipeline:
    """The pipeline of an official run, without writing it; arguments and errors as `convert`."""
    run = read_official(official, ddpm_config=ddpm_config, ema=ema)
    if run.chunks is None:
        raise ModelError(
            f"{official} is a pre-trained DPM, not a run of DiTi or PDAE.",
            remedy="Give a run of DiTi or PDAE, or convert the DPM to a base with `diti convert`.",
        )
    with wrong_values_named(official):
        return _pipeline(run, _build(run))


def _build(run: OfficialRun) -> _Parts:
    if run.chunks is None:
        unet = base_from_official(run.weights["denoise_fn"], run.denoise_fn_config, run.resolution)
        check_base_config(unet.config)
        return _Parts(unet)
    encoder = run.weights["encoder"]
    if "decoder" not in run.weights:
        return _Parts(encoder=encoder_from_official(encoder, run.encoder_model, latent_dim=run.latent_dim))
    unet, enc, shift = from_official(
        encoder,
        run.weights["decoder"],
        run.denoise_fn_config,
        encoder_model=run.encoder_model,
        latent_dim=run.latent_dim,
    )
    check_base_config(unet.config, resolution=run.resolution)
    return _Parts(unet, enc, shift)


def _pipeline(run: OfficialRun, parts: _Parts) -> DiTiPipeline:
    assert run.chunks is not None
    assert parts.encoder is not None
    return DiTiPipeline(
        parts.unet,
        parts.encoder,
        parts.shift_decoder,
        DDIMScheduler.from_config(run.scheduler.config),
        run.chunks.layout.to_dict(),
        crop=run.crop,
    )


def _publish(out: Path, parts: _Parts, run: OfficialRun, record: Mapping[str, Any]) -> None:
    """Fill a folder beside `out`, then rename it into place."""

    def fill(folder: Path) -> None:
        if run.chunks is None and parts.unet is not None:
            parts.unet.save_pretrained(folder / "unet")
            run.scheduler.save_pretrained(folder / "scheduler")
        else:
            _pipeline(run, parts).save_pretrained(str(folder))
        write_json(folder / RECORD, record)

    try:
        publish_folder(out, fill, replace=is_converted(out))
    except OSError as error:
        raise ModelError(f"Cannot write {out}: {error.strerror or error}.", remedy="Choose another -o.") from error


def _record(run: OfficialRun, parts: _Parts) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": run.kind,
        "checkpoint": str(run.checkpoint),
        "ddpm_config": str(run.ddpm_config) if run.ddpm_config else None,
        "weights": "ema" if run.ema else "raw",
        "step": run.step,
        "resolution": run.resolution,
        "crop": run.crop,
        "timesteps": run.scheduler.config.num_train_timesteps,
    }
    if run.chunks is not None:
        layout = run.chunks.layout
        record |= {"latent_dim": layout.latent_dim, "chunks": layout.chunks, "partition": run.chunks.partition}
        record |= {"gradient": run.gradient, "encoder": run.encoder_model}
    present = {name: part for name, part in parts._asdict().items() if part is not None}
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in present.items()}
    return record | {"parameters": parameters, "notes": list(run.notes), "diticli": __version__}
