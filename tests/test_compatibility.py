"""Behaviour of other libraries that docs/compatibility.md names, and what is made of it here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from diticli.errors import ModelError
from diticli.models.base_files import load_base
from diticli.models.pipeline import unet_from_diffusers
from diticli.models.unet_forward import estimate_noise

ROOT = Path(__file__).parents[1]


def unet(**options: Any) -> UNet2DModel:
    """A network of two levels, 16 and 24 channels wide, with attention in the lower one."""
    two = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (16, 24),
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(0)
    return UNet2DModel(**(two | options)).eval().requires_grad_(False)


def estimate(net: UNet2DModel, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return estimate_noise(unet_from_diffusers(net), x, t)


def test_a_base_whose_lowest_level_is_one_pixel() -> None:
    """diffusers takes two images there and refuses one, in its group norm."""
    levels = {"block_out_channels": (8, 8, 8), "sample_size": 4, "add_attention": False}
    net = unet(**levels, down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3)
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([3, 700])
    with torch.no_grad():
        theirs = net(x, t).sample
    torch.testing.assert_close(estimate(net, x, t), theirs)
    torch.testing.assert_close(estimate(net, x[:1], t[:1]), theirs[:1])


def test_heads_that_do_not_divide_the_channels() -> None:
    """24 channels and heads of 16: one head, 16 channels wide."""
    net, x, t = unet(attention_head_dim=16), torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    assert net.mid_block.attentions[0].to_q.weight.shape == (16, 24)
    with torch.no_grad():
        theirs = net(x, t).sample
    torch.testing.assert_close(estimate(net, x, t), theirs)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_betas_and_timesteps_must_agree(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path / "unet")
    betas = np.linspace(1e-4, 0.2, 50)
    DDPMScheduler(trained_betas=betas).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ModelError, match="has 50 betas, its config says 1,000 timesteps") as error:
        load_base(str(tmp_path))
    assert "num_train_timesteps=50" in error.value.remedy
    DDPMScheduler(num_train_timesteps=50, trained_betas=betas).save_pretrained(tmp_path / "scheduler")
    assert len(load_base(str(tmp_path))[1].alphas_cumprod) == 50


def test_the_page_names_scripts_and_tests_that_exist() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    scripts = {path.name for path in (ROOT / "findings").glob("*.sh")}
    assert set(re.findall(r"`([\w-]+\.sh)`", page)) <= scripts
    listed = re.findall(r"^\| \[([\w-]+)\]", (ROOT / "findings" / "README.md").read_text(), re.MULTILINE)
    assert {f"{name}.sh" for name in listed} == scripts
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert all(f"def {name}(" in tests for name in re.findall(r"`(test_\w+)`", page))


def test_findings_are_short_pinned_and_do_without_diti() -> None:
    for path in (ROOT / "findings").glob("*.sh"):
        lines = path.read_text().splitlines()
        comment = [line for line in lines[1:] if line.startswith("#")]
        packages = next(line for line in lines if "pip install" in line).split()[4:]
        assert len(lines) <= 60, path
        assert 1 <= len(comment) <= 8, path
        assert all("==" in package for package in packages if package[:2] != "--"), path
        assert not any("diti" in line for line in lines), path
