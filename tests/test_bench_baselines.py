"""The demo's rivals get the demo's budget, and the base where they need one."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.experiments.baselines import RIVALS, markdown, settings
from diticli.settings import build_config

OPTIONS = argparse.Namespace(demo=Path("runs/demo"), images=0, device="cpu", seed=3)


@pytest.mark.parametrize("rival", RIVALS)
def test_rivals_differ_from_the_demo_in_the_method_alone(rival):
    demo, config = build_config("faces32"), build_config("faces32", options=settings(rival, OPTIONS))
    assert (config.features, config.encoder, config.data) == (demo.features, demo.encoder, demo.data)
    assert config.seed == 3
    assert config.ssl.only == (rival != "pdae")
    assert config.base_model == ("" if config.ssl.only else str(Path("runs/demo/base").absolute()))
    assert config.chunks.count == (1 if rival == "pdae" else 64)


def test_a_budget_can_be_given():
    shorter = argparse.Namespace(**vars(OPTIONS) | {"images": 640})
    assert build_config("faces32", options=settings("simclr", shorter)).features.images == 640


def test_tables_are_markdown():
    assert (
        markdown((["a", "b"], [["x", 1], ["y", None], ["z", 0.625]]))
        == "| a | b |\n| --- | --- |\n| x | 1 |\n| y |  |\n| z | 0.62 |"
    )
