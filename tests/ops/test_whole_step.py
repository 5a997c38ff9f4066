"""A whole training and an encoding through the Triton kernels, in Triton's interpreter, against plain PyTorch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diti_kernels import dispatch
from PIL import Image
from safetensors.numpy import load_file

STEPS = 10
# The fewest norms that a network can have: in the interpreter each takes 10 ms an image. Groups of 3 and 6 channels, 11
# dims in 3 chunks.
ODD = (
    "data.source=faces:24",
    "data.resolution=16",
    "encoder.widths=[32]",
    "encoder.attention_size=0",
    "chunks.count=3",
    "chunks.partition=uniform",
    "chunks.latent_dim=11",
    "features.warmup_images=0",
    "features.learning_rate=0.01",
    "precision=fp32",
    "device=cpu",
    "compile=false",
    "log_every=1",
    "sample_every=0",
)
MODES = {
    "cumulative": (1, STEPS, "gradient=cumulative"),
    "detached": (1, STEPS, "gradient=detached"),
    "detached, all visible": (1, STEPS, "gradient=detached", "chunks.visible=all"),
}
"""Images of a step, steps, and settings."""


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available() or not dispatch.triton_is_interpreted():
        pytest.skip("Triton does not run in its interpreter here")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One level, no middle block, random weights."""
    from diffusers import UNet2DModel

    from diticli.models.build import new_scheduler

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(12,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    unet.save_pretrained(folder / "unet")
    new_scheduler().save_pretrained(folder / "scheduler")
    return folder


def trained(base: Path, out: Path, mode: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    from diticli.settings import build_config
    from diticli.training.run import train

    monkeypatch.setenv(dispatch.VARIABLE, kernels)
    batch, steps, *settings = MODES[mode]
    budget = {"features.batch_size": batch, "features.images": batch * steps}
    options = {"base_model": str(base), **budget}
    train(build_config("faces32", options=options, assignments=(*ODD, *settings)), out)
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", MODES)
def test_a_training_follows_the_reference(
    base: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten steps, and an encoding by what they trained.

    A step's gradients differ by rounding, 1e-6 of the largest; Adam keeps that small while no gradient is near zero.
    """
    launched: list[str] = []
    real = dispatch._decide_and_log
    monkeypatch.setattr(dispatch, "_decide_and_log", lambda device: launched.append(real(device)) or launched[-1])
    plain = trained(base, tmp_path / "reference", mode, "reference", monkeypatch)
    assert set(launched) == {"reference"}
    launched.clear()
    fused = trained(base, tmp_path / "triton", mode, "triton", monkeypatch)
    assert set(launched) == {"triton"}
    assert len(plain) == MODES[mode][1]
    np.testing.assert_allclose(fused, plain, rtol=1e-4)
    assert plain[-1] != plain[0]
    wanted, found = (moments(tmp_path / kernels) for kernels in ("reference", "triton"))
    least = 1e-6 * max(np.abs(value).max() for value in wanted.values())
    for name, value in wanted.items():
        largest = max(np.abs(value).max(), least)
        np.testing.assert_allclose(found[name], value, atol=1e-3 * largest, err_msg=name)
    assert len(wanted) > 20
    features = [encoded(tmp_path / "triton", tmp_path, kernels, monkeypatch) for kernels in ("reference", "triton")]
    np.testing.assert_allclose(features[1], features[0], atol=1e-5 * np.abs(features[0]).max())


def moments(run: Path) -> dict[str, np.ndarray]:
    """The means of the gradients of each weight that Adam keeps: those of the encoder show in no loss so soon."""
    from diticli.training.checkpoint import list_checkpoints

    kept = load_file(list_checkpoints(run / "checkpoints")[-1] / "optimizer.safetensors")
    return {name: value for name, value in kept.items() if name.endswith(".exp_avg")}


def encoded(run: Path, folder: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Features of three pictures by the model of a run."""
    from diticli.data.images import open_images
    from diticli.encoding.encode import encode_with
    from diticli.models.load import load_pipeline

    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    for index in range(3):
        pixels = np.random.default_rng(index).integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    monkeypatch.setenv(dispatch.VARIABLE, kernels)
    out = folder / f"{kernels}.npy"
    encode_with(load_pipeline(str(run)), open_images([str(photos)], 16), out, precision="fp32", batch_size=2)
    assert os.environ[dispatch.VARIABLE] == kernels
    return np.load(out)
