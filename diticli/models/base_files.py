"""Load a base from a diffusers folder or a Hub id: weights, their moving average, the noise schedule.

Layouts that are read: a pipeline (`unet/`, `scheduler/`), the `unet` folder of one, a `checkpoint-N` of diffusers'
train_unconditional (`unet/`, `unet_ema/`) or a folder in it, a bare UNet, and a run or a model of ours.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.errors import ModelError
from diticli.models.gate import check_base_config, check_finite, check_scheduler
from diticli.models.hub import first_line, local_folder
from diticli.models.network import PRECISIONS, STEM, OtherWeightsError
from diticli.models.unet import UNet
from diticli.reading import read_regular

if TYPE_CHECKING:
    from diticli.models.pipeline import DDPMScheduler

logger = logging.getLogger(__name__)

_WEIGHTS = re.compile(rf"{STEM}(?:\.(\w+))?\.safetensors|{STEM}\.safetensors\.index(?:\.(\w+))?\.json")
_PIXEL_PARTS = {"unet", "scheduler", "encoder", "shift_decoder"}
_LATENT_PARTS = {"vae", "vqvae", "movq", "autoencoder", "first_stage_model"}
_REMEDY = "Give a folder saved by diffusers (with config.json and safetensors weights) or a Hub id."


def load_base(
    name_or_path: str,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    say: Callable[[str], None] = logger.warning,
) -> tuple[UNet, DDPMScheduler]:
    """A base and its scheduler from a diffusers folder (pipeline, UNet, checkpoint, or run) or a Hub id.

    Args:
        name_or_path: see the module.
        resolution: height and width of the images; None leaves them unchecked.
        channels: of the images; None leaves them unchecked.
        say: takes one line for each thing that was assumed or chosen.

    Raises:
        ModelError: when nothing can be loaded from there, when it is part of something else (a latent pipeline),
            or when the gate (`diticli.models.gate`) refuses it.
    """
    folder = Path(os.path.abspath(local_folder(name_or_path)))
    for part in ("base", "model"):
        if (folder / part / "unet").is_dir() and not (folder / "unet").is_dir():
            folder = folder / part
    unet_folder = _unet_folder(folder, say)
    around = _folders_around(unet_folder)
    _check_index(around)
    scheduler = _load_scheduler(around, unet_folder, say)
    return _load_unet(unet_folder, resolution, channels, say).requires_grad_(False).eval(), scheduler


def _unet_folder(folder: Path, say: Callable[[str], None]) -> Path:
    if (folder / "unet_ema").is_dir():
        say(f"The base's averaged weights are used: {folder / 'unet_ema'}.")
        return folder / "unet_ema"
    if folder.name == "unet" and (folder.parent / "unet_ema").is_dir():
        say(f"{folder} holds the raw weights, as asked; the averaged ones are in {folder.parent / 'unet_ema'}.")
    return folder / "unet" if (folder / "unet").is_dir() else folder


def _folders_around(unet_folder: Path) -> list[Path]:
    """Where the base's index and scheduler may be, nearest first."""
    around = [unet_folder]
    if unet_folder.name in ("unet", "unet_ema"):
        around.append(unet_folder.parent)
    if re.fullmatch(r"checkpoint-\d+", around[-1].name):
        around.append(around[-1].parent)
    return around


def _check_index(around: list[Path]) -> None:
    """Refuse a UNet whose pipeline has other parts than those of a diffusion model of pixels."""
    index = next((folder / "model_index.json" for folder in around if (folder / "model_index.json").is_file()), None)
    if index is None:
        return
    entries = _json(index)
    parts = {name for name, value in entries.items() if isinstance(value, list) and value and value[0] is not None}
    if latent := sorted(parts & _LATENT_PARTS):
        raise ModelError(
            f"{index.parent} is a latent diffusion model ({', '.join(latent)}): its UNet reads latents, not pixels.",
            remedy="Use a base that was trained on pixels, such as a DDPMPipeline.",
        )
    if others := sorted(parts - _PIXEL_PARTS):
        raise ModelError(
            f"{index.parent} is a {entries.get('_class_name', 'pipeline')}, whose UNet needs its {', '.join(others)}.",
            remedy="Use a pipeline of a UNet2DModel and a scheduler alone, such as a DDPMPipeline.",
        )
    if "unet" not in parts:
        raise ModelError(f"The pipeline in {index.parent} has no unet.", remedy=_REMEDY)


def _load_unet(folder: Path, resolution: int | None, channels: int | None, say: Callable[[str], None]) -> UNet:
    from diticli.models.pipeline import read_unet

    if (folder / "config.json").is_file():
        check_base_config(_json(folder / "config.json"), resolution=resolution, channels=channels)
    variant = _variant(folder)
    if variant is not None:
        say(f"{folder} holds {variant} weights only; they are computed in float32.")
    try:
        unet = read_unet(folder, variant=variant)
    except OtherWeightsError as error:
        raise ModelError(error.message, remedy=_REMEDY) from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"Cannot load a base from {folder}: {first_line(error)}", remedy=_REMEDY) from error
    check_finite({"unet": unet}, f"The base in {folder}")
    return unet


def _variant(folder: Path) -> str | None:
    """The precision in the name of the only weights there are; None for weights of the usual name.

    Raises:
        ModelError: when there are no safetensors, or only those of a variant that is no precision.
    """
    if not (folder / "config.json").is_file():
        return None  # no network at all, which diffusers says
    found = {path.name for path in folder.glob(f"{STEM}*")}
    variants = {match[1] or match[2] for name in found if (match := _WEIGHTS.fullmatch(name))}
    if None in variants:
        return None
    if chosen := next((name for name in PRECISIONS if name in variants), None):
        return chosen
    convert = (
        f'python -c "from diffusers import UNet2DModel as U; '
        f"U.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
    )
    if pickled := sorted(name for name in found if name.endswith((".bin", ".bin.index.json"))):
        raise ModelError(
            f"Cannot load a base from {folder}: its weights are a pickle ({pickled[0]}), which can run code when read.",
            remedy=f"If you trust it, convert it to safetensors weights once: {convert}",
        )
    if variants:
        name = sorted(str(variant) for variant in variants)[0]
        raise ModelError(
            f"Cannot load a base from {folder}: it holds the weights of a variant only ({', '.join(sorted(found))}).",
            remedy=f"If they are the ones to use, rename {STEM}.{name}.safetensors to {STEM}.safetensors.",
        )
    raise ModelError(
        f"Cannot load a base from {folder}: it has no safetensors weights (no {STEM}.safetensors).",
        remedy=f"{_REMEDY} Only safetensors weights are fetched from the Hub: where there is a .bin alone, "
        "download it yourself and convert it, if you trust it, by UNet2DModel.from_pretrained(..., "
        "use_safetensors=False).save_pretrained(...).",
    )


def _load_scheduler(around: list[Path], unet_folder: Path, say: Callable[[str], None]) -> DDPMScheduler:
    from diticli.models.pipeline import DDPMScheduler, read_scheduler

    places = [place for folder in around for place in (folder, folder / "scheduler")]
    folder = next((place for place in places if (place / "scheduler_config.json").is_file()), None)
    if folder is None:
        say(
            f"No scheduler was found with {unet_folder}: the noise schedule of the DDPM paper is assumed "
            "(beta linear from 0.0001 to 0.02 over 1000 timesteps)."
        )
        return DDPMScheduler(clip_sample=False)
    config = _json(folder / "scheduler_config.json")
    check_scheduler(config, str(folder))
    try:
        return read_scheduler(folder)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"Cannot read the scheduler in {folder}: {first_line(error)}",
            remedy="Save the scheduler again with diffusers' save_pretrained.",
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_regular(path)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        what = "the scheduler in" if path.name == "scheduler_config.json" else "a base from"
        verb = "read" if path.name == "scheduler_config.json" else "load"
        reason = f"{path.name} is not a valid JSON file ({first_line(error)})"
        raise ModelError(f"Cannot {verb} {what} {path.parent}: {reason}.", remedy="Copy it again.") from error
