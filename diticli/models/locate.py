"""Which model a command means: what was named, else `$DITI_MODEL`, else the newest finished run under ./runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diticli.errors import ModelError
from diticli.models.attention import check_attention
from diticli.models.device import resolve_device
from diticli.models.model import DiTiModel
from diticli.models.plain_model import load_plain

if TYPE_CHECKING:
    from diticli.models.pipeline import DiTiPipeline

RUNS = Path("runs")


def locate_model(model: str | None, *, runs: Path = RUNS) -> str:
    """Name of the model to load: a pipeline folder, a run directory or a Hub id.

    Raises:
        ModelError: when none is named and none can be found.
    """
    chosen = model or os.environ.get("DITI_MODEL")
    if chosen:
        return chosen
    finished = [p.parent.parent for p in runs.glob("*/model/model_index.json")]
    if not finished:
        raise ModelError(
            f"No model is named and there is no finished run under ./{runs}.",
            remedy="Use --model, set DITI_MODEL, or train one: `diti demo` takes minutes.",
        )
    newest = max(finished, key=lambda run: (run / "model" / "model_index.json").stat().st_mtime)
    return str(newest)


def load_model(model: str | None = None, device: str | None = None) -> DiTiModel:
    """The located model on a device, to run and not to save: without diffusers, whose import takes seconds.

    What cannot be read without it, or not at all, is left to `load_pipeline`, which then says what is wrong.

    Raises:
        ModelError: when there is no such model.
        DeviceError: when there is no such device, or no xformers there although DITI_ATTENTION asks for it.
        ConfigError: when DITI_ATTENTION is unknown.
    """
    target = resolve_device(device)
    check_attention(target)
    name = locate_model(model)
    plain = load_plain(name)
    return load_pipeline(name, device) if plain is None else plain.to(target)


def load_pipeline(model: str | None = None, device: str | None = None) -> DiTiPipeline:
    """The located model on a device, as a diffusers pipeline.

    Raises:
        ModelError: when there is no such model.
        DeviceError: when there is no such device, or no xformers there although DITI_ATTENTION asks for it.
        ConfigError: when DITI_ATTENTION is unknown.
    """
    target = resolve_device(device)
    check_attention(target)
    from diticli.models.pipeline import DiTiPipeline

    with _quiet_loading():
        pipeline = DiTiPipeline.from_pretrained(locate_model(model))
    return pipeline.to(target)


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without diffusers' own progress bar: loading takes less time than reading it."""
    from diffusers.utils import logging as diffusers_logging

    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()
