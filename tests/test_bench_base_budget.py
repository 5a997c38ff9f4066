"""The sweep of stage 1: its arms are what they say, and its unit is degrees of freedom."""

import argparse
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.experiments.base_budget import ARMS, noise_errors, settings, speed
from diticli.settings import build_config
from diticli.training.rundir import RunDirectory

OPTIONS = argparse.Namespace(images=640, device="cpu")


@pytest.mark.parametrize(("batch", "rate"), ARMS)
def test_an_arm_has_its_batch_and_peak_learning_rate(batch, rate):
    config = settings(batch, rate, OPTIONS)
    assert (config.base.batch_size, config.base.images) == (batch, 640)
    assert config.base.peak_learning_rate == pytest.approx(rate)
    assert (config.unet, config.data) == (build_config("faces32").unet, build_config("faces32").data)


def test_a_base_that_says_nothing_misses_every_degree_of_freedom(tmp_path, make_unet):
    """The estimate 0 is off by the noise, whose mean square is 1, in each of the D values of an image."""
    unet = make_unet()
    unet.conv_out.weight.data.zero_()
    unet.conv_out.bias.data.zero_()
    unet.save_pretrained(tmp_path / "base")
    values = 3 * unet.config.sample_size**2
    found = noise_errors(RunDirectory(tmp_path), faces=16)
    assert all(error == pytest.approx(values, rel=0.05) for error in found.values())


def test_speed_is_the_median_of_stage_one(tmp_path):
    lines = [{"stage": "base", "images_per_second": speed} for speed in (10, 300, 200)]
    lines.append({"stage": "features", "images_per_second": 1})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert speed(RunDirectory(tmp_path)) == 200
