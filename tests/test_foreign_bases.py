"""Bases with the architectures of google/ddpm-* train and edit: the whole stage 2 on small random instances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_training import tiny

from diticli.training.run import train


@pytest.mark.parametrize(
    "shape", ["ddpm-cifar10-32", "ddpm-celebahq-256", "resnet-default", "resnet-scale_shift", "conv-scale_shift"]
)
def test_base_trains_and_edits(make_unet: Callable[..., Any], tmp_path: Path, shape: str) -> None:
    from diffusers import DDPMScheduler

    from diticli import DiTiPipeline
    from diticli.editing.pair import EditSettings, edit_pair

    unet = make_unet(shape)
    unet.save_pretrained(tmp_path / "hub" / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "hub" / "scheduler")
    size = int(unet.config.sample_size)
    train(tiny("features.images=24", f"data.resolution={size}", base_model=str(tmp_path / "hub")), tmp_path / "run")
    pipeline = DiTiPipeline.from_pretrained(tmp_path / "run")
    for name, value in unet.state_dict().items():
        assert value.equal(pipeline.unet.state_dict()[name]), f"{name} of the frozen base changed"
    assert pipeline.shift_decoder.conv_out.weight.abs().max() > 0, "the shift decoder learned nothing"
    pictures = [Image.fromarray(np.full((size, size, 3), shade, np.uint8)) for shade in (40, 200)]
    result = edit_pair(pipeline, *pictures, [(0, 1)], [1.0], settings=EditSettings(invert_steps=2, decode_steps=2))
    assert {picture.shape for picture in result.edits.values()} == {(size, size, 3)}
