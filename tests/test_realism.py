"""SSIM, MS-SSIM, LPIPS, FID and KID of reconstructions and edits; what cannot be taken is named, never downloaded."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.evaluation import realism
from diticli.evaluation.evidence_tables import missing_text, realism_table
from diticli.evaluation.realism import ALEXNET, INCEPTION, Realism, fid, kid, pairwise_measures, set_measures


def images(count: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of PyTorch, and every download an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_weights_that_are_nowhere_are_named_with_their_source(no_downloads: Path, tmp_path: Path) -> None:
    found, missing = pairwise_measures(32, tmp_path / "own")
    assert set(found) == {"ssim"}
    assert missing["ms_ssim"] == "it needs 161 pixels a side, the images have 32"
    assert missing["lpips"] == (
        f"no {ALEXNET} in {tmp_path / 'own'} or {no_downloads}: get it from https://download.pytorch.org/models and "
        "name its folder with --weights"
    )
    sets, missing_of_sets = set_measures(None)
    assert sets == {}
    assert set(missing_of_sets) == {"fid", "kid"}
    assert f"no {INCEPTION} in {no_downloads}: " in missing_of_sets["fid"]
    said = missing_text(Realism(images=4, reconstructions={}, missing=missing | missing_of_sets))
    assert "No FID, KID: no weights-inception" in said
    given = images(3, 32)
    assert found["ssim"](given, given) == pytest.approx(1)
    assert found["ssim"](given, images(3, 32, seed=1)) < 0.2


def test_without_the_extra_it_is_named(no_downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_downloads.mkdir(parents=True)
    for name in (ALEXNET, INCEPTION):
        torch.save({}, no_downloads / name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    _, missing = pairwise_measures(200, None)
    assert set(missing) == {"ms_ssim", "lpips"}
    for reason in [*missing.values(), set_measures(None)[1]["kid"]]:
        assert 'pip install "diticli[metrics]"' in reason


def test_files_that_hold_no_such_weights_are_no_error(no_downloads: Path) -> None:
    no_downloads.mkdir(parents=True)
    for name in (ALEXNET, INCEPTION):
        (no_downloads / name).write_text("no weights")
    assert set(pairwise_measures(32, None)[1]) == {"ms_ssim", "lpips"}
    assert set(set_measures(None)[1]) == {"fid", "kid"}


def test_the_command_says_what_is_missing(make_pipeline: Any, no_downloads: Path, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(str(tmp_path / "a"))
    arguments = ["evaluate", str(tmp_path / "a"), "--pairs", "4", "--learn", "200", "--epochs", "1", "--steps", "2"]
    arguments += ["--no-moves", "--chunks", "0", "--realism", "--force", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "SSIM" in result.stdout
    assert f"no {INCEPTION} in" in result.output.replace("\n", " ")
    (model,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]
    found = model["realism"]
    assert found["images"] == 8
    assert set(found["reconstructions"]) == {"ssim"}
    assert set(found["missing"]) == {"ms_ssim", "lpips", "fid", "kid"}
    assert "reconstructions and realism" in (tmp_path / "out" / "report.html").read_text()


def test_the_table_has_a_row_for_each_set_of_images() -> None:
    found = Realism(images=4, reconstructions={"ssim": 0.9, "fid": 1.25}, edits={"0-3": {"fid": 2.5}})
    columns, rows = realism_table(found)
    assert columns == ["images", "SSIM", "FID"]
    assert rows == [["reconstructions", "0.900", "1.250"], ["chunks 0-3 exchanged", None, "2.500"]]


# with the extra


def installed(name: str) -> Any:
    """A module of the extra, else skip: torchvision may be missing, or for another build of PyTorch."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))


class Means(torch.nn.Module):
    """Features of an image: the means of its channels."""

    num_features = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean(dim=(2, 3))


def test_distances_of_sets_by_their_formulas() -> None:
    installed("torchmetrics.image.fid")
    real = images(300, 4)
    moved = (real.int() // 2 + 100).to(torch.uint8)
    a, b = (x.float().mean(dim=(2, 3)).double() for x in (real, moved))
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(cov_a @ cov_b).sqrt().sum().real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * root
    assert fid(Means(), real, moved) == pytest.approx(float(expected), rel=1e-3)
    assert fid(Means(), real, real) == pytest.approx(0, abs=1e-3)
    assert kid(Means(), real, moved) > kid(Means(), real, images(300, 4, seed=1))
    assert kid(Means(), real, moved) == kid(Means(), real, moved)


def test_ssim_is_that_of_torchmetrics() -> None:
    image = installed("torchmetrics.functional.image")
    a, b = images(3, 200), images(3, 200, seed=1)
    near = (a.float() * 0.8 + b.float() * 0.2).to(torch.uint8)
    found, missing = pairwise_measures(200, None)
    assert "ms_ssim" not in missing
    theirs = image.structural_similarity_index_measure(near.float() / 255, a.float() / 255, data_range=1.0)
    assert found["ssim"](a, near) == pytest.approx(float(theirs), abs=2e-3)
    assert 0.8 < found["ms_ssim"](a, near) < found["ms_ssim"](a, a) == pytest.approx(1, abs=1e-5)


def test_lpips_takes_the_weights_of_the_file(no_downloads: Path, tmp_path: Path) -> None:
    installed("torchmetrics")
    models = installed("torchvision.models")
    torch.manual_seed(0)
    torch.save(models.alexnet().state_dict(), tmp_path / ALEXNET)
    found, missing = pairwise_measures(64, tmp_path)
    assert "lpips" not in missing
    a, b = images(2, 64), images(2, 64, seed=1)
    assert found["lpips"](a, a) == pytest.approx(0, abs=1e-6)
    assert found["lpips"](a, b) > 0
    assert realism.lpips_network(tmp_path / ALEXNET).training is False


@pytest.mark.slow
def test_fid_and_kid_take_the_weights_of_the_file(no_downloads: Path, tmp_path: Path) -> None:
    installed("torchmetrics.image.fid")
    theirs = installed("torch_fidelity.feature_extractor_inceptionv3")

    def drawn(self: Any, *_: Any, **__: Any) -> None:
        """Weights as they were drawn, in place of a file's."""

    place = tmp_path / "own" / INCEPTION
    place.parent.mkdir()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.Module, "load_state_dict", drawn)
        patched.setattr(torch, "load", lambda *_, **__: {})
        network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(place))
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):  # as they are drawn, 94 layers leave nothing of an image
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), place)
    found, missing = set_measures(place.parent)
    assert missing == {}
    a, b = images(4, 32), images(4, 32, seed=1) // 3
    read = realism.inception(place)
    expected = network.eval()(a)[0].flatten(1)
    torch.testing.assert_close(read(a), expected)
    assert found["fid"](a, b) > 100 * max(1e-3, found["fid"](a, a))
    assert math.isfinite(found["kid"](a, b))
    place.write_bytes(place.read_bytes()[:1000])
    assert set(set_measures(place.parent)[1]) == {"fid", "kid"}
