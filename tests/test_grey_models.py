"""Models of one channel, on pictures of 12 bits: trained, stored, read again, and used like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_training import tiny
from tiny_models import tiny_unet_config
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.comparison.entry_specs import BASELINES, parse_entries
from diticli.comparison.repeat import commands
from diticli.comparison.report import write_comparison
from diticli.comparison.run import compare
from diticli.comparison.settings import CompareSettings
from diticli.data.faces import render_face, sample_factors
from diticli.data.images import open_images
from diticli.errors import ConfigError, ModelError
from diticli.evaluation.attribute_classifier import AttributeClassifier
from diticli.evaluation.images import evaluation_faces
from diticli.evaluation.noisy_classifier import NoisyClassifier
from diticli.features.read import read_features
from diticli.models.base_files import load_base
from diticli.models.gate import check_base_config
from diticli.models.model_files import read_model
from diticli.models.pipeline import DiTiPipeline
from diticli.progress import SilentReporter
from diticli.targets import Requirements, make_targets
from diticli.training.run import train

SIDE, COUNT = 16, 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey TIFFs of 16 bits that use 12 of them."""
    folder = tmp_path_factory.mktemp("slices")
    for at, factors in enumerate(sample_factors(0, np.arange(COUNT))):
        grey = np.asarray(Image.fromarray(render_face(factors, SIDE)).convert("L")).astype(np.uint16)
        Image.fromarray(grey * 16).save(folder / f"{at:03d}.tiff")
    (folder / "labels.csv").write_text("file,big\n" + "".join(f"{at:03d}.tiff,{at % 2}\n" for at in range(COUNT)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "grey"
    train(
        tiny(
            "base.images=16",
            "features.images=16",
            "sample_every=2",
            "chunks.partition=auto",
            f"data.source={pictures}",
            "data.channels=1",
        ),
        out,
    )
    return out


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_grey_run_keeps_one_channel_and_its_window(run: Path, pictures: Path) -> None:
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["data"]["channels"] == 1
    assert config["data"]["value_range"] == [0, 4095]
    assert list((run / "samples").glob("features-*.png"))
    for model in (read_model(str(run)), DiTiPipeline.from_pretrained(run)):
        assert (model.channels, model.value_range) == (1, (0, 4095))
        assert model.unet.config.in_channels == model.unet.config.out_channels == 1
        x = model.preprocess([pictures / "000.tiff"])
        assert x.shape == (1, 1, SIDE, SIDE)
        source = open_images(str(pictures), SIDE, channels=1)
        seen = torch.from_numpy(source.load(0)).permute(2, 0, 1)[None]
        assert torch.equal(x, seen.float() / 127.5 - 1)
        z = model.encode([pictures / "000.tiff"])
        noise = model.invert(x, z, steps=2)
        assert model.decode(noise, z, steps=2).shape == (1, 1, SIDE, SIDE)
        with pytest.raises(ConfigError, match=r"\[N, 1, 16, 16\]"):
            model.encode(torch.zeros(1, 3, SIDE, SIDE))


def test_the_window_is_a_part_of_the_model(run: Path, tmp_path: Path) -> None:
    pipeline = DiTiPipeline.from_pretrained(run)
    before = pipeline.model_hash
    pipeline.register_to_config(value_range={"low": 0, "high": 1000})
    assert pipeline.model_hash != before
    for wrong in ({"low": 2, "high": 1}, [0, 1], "all", {"low": 0}):
        with pytest.raises(ModelError, match="value_range"):
            DiTiPipeline(
                pipeline.unet,
                pipeline.encoder,
                pipeline.shift_decoder,
                pipeline.scheduler,
                chunk_layout=pipeline.config.chunk_layout,
                value_range=wrong,
            )


def test_the_same_command_goes_on_with_the_window_that_was_found(run: Path, pictures: Path) -> None:
    again: dict[str, Any] = {"data.channels": 1, "data.source": str(pictures)}
    train(
        tiny("base.images=16", "features.images=16", "sample_every=2", "chunks.partition=auto", **again), run
    )  # already finished


def test_encode_and_probe_and_edit_take_a_grey_model(run: Path, pictures: Path, tmp_path: Path) -> None:
    invoke("encode", pictures, "-o", tmp_path / "f.npy", "--model", run, "--device", "cpu")
    features = read_features(tmp_path / "f.npy")
    assert features.meta.preprocessing["channels"] == 1
    assert features.meta.preprocessing["value_range"] == [0, 4095]
    invoke("encode", pictures, "-o", tmp_path / "g.npy", "--model", run, "--value-range", "0,2000", "--device", "cpu")
    assert not np.array_equal(read_features(tmp_path / "g.npy").values, features.values)
    a, b = pictures / "000.tiff", pictures / "001.tiff"
    strip, singles = tmp_path / "e.png", tmp_path / "singles"
    invoke("edit", a, b, "--model", run, "--steps", 2, "-o", strip, "--separate", singles, "--device", "cpu")
    assert Image.open(strip).mode == "RGB"
    assert list(singles.iterdir())


def test_a_grey_base_is_read_and_one_of_other_colours_is_refused(run: Path) -> None:
    unet, _ = load_base(str(run / "base"), resolution=SIDE, channels=1)
    assert unet.config.in_channels == 1
    with pytest.raises(ModelError) as caught:
        load_base(str(run / "base"), resolution=SIDE, channels=3)
    assert "--channels 1" in str(caught.value.remedy)
    with pytest.raises(ModelError, match="1 channels, the run wants 3"):
        check_base_config(tiny_unet_config(in_channels=1, out_channels=1), channels=3)


def test_self_supervision_needs_colours() -> None:
    with pytest.raises(ConfigError, match="changes colours"):
        tiny("data.channels=1", "ssl.method=simclr")


def test_images_to_evaluate_with_are_grey_where_the_model_is() -> None:
    images = evaluation_faces(SIDE, learn=6, pairs=2, reporter=SilentReporter(), channels=1)
    assert images.learn_NCHW.shape == (6, 1, SIDE, SIDE)
    drawn = torch.from_numpy(images.drawn(lambda factors: factors)).permute(0, 3, 1, 2)
    assert torch.equal(drawn, images.judge_NCHW)
    target = make_targets(images.columns, {"train": np.arange(6)}, Requirements(train_rows=2))[0][:1]
    for classifier in (AttributeClassifier(target, SIDE, 1), NoisyClassifier(target, SIDE, 1000, 1)):
        t = () if isinstance(classifier, AttributeClassifier) else (torch.zeros(6, dtype=torch.long),)
        assert classifier(images.learn_NCHW.float(), *t).shape == (6, 1)


def test_compare_reads_pictures_as_the_grey_model_does(run: Path, tmp_path: Path) -> None:
    factors = sample_factors(1, np.arange(120))
    twelve = [
        np.asarray(Image.fromarray(render_face(one, SIDE)).convert("L")).astype(np.uint16) * 16 for one in factors
    ]
    for at, values in enumerate(twelve):
        Image.fromarray(values).save(tmp_path / f"{at:03d}.tiff")
    rows = [f"{at:03d}.tiff,{one[0]},{one[1]}" for at, one in enumerate(factors)]
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,hue,light", *rows]) + "\n")
    given: dict[str, Any] = {"data": (str(tmp_path),), "labels": str(tmp_path / "labels.csv"), "metrics": False}
    specs = parse_entries([f"grey={run}"], (*BASELINES, "base:50"))
    result = compare(specs, CompareSettings(**given, shown=1, steps=2), tmp_path / "out", device="cpu")
    assert result is not None
    assert {(entry.channels, entry.value_range) for entry in result.entries} == {(1, (0, 4095))}
    pixels = read_features(Path(result.features["raw pixels"])).values
    assert pixels.shape == (120, SIDE * SIDE)
    np.testing.assert_array_equal(pixels[3].reshape(SIDE, SIDE), np.rint(twelve[3] * (255 / 4095)).astype("f4") / 255)
    write_comparison(result, tmp_path / "out", ["diti"])
    strip = Image.open(tmp_path / "out" / "pair-0.png")
    assert strip.mode == "RGB"

    narrow = CompareSettings(**given, shown=0, value_range=(0.0, 1000.0))
    cut = compare(parse_entries([f"grey={run}"], ("pixels",)), narrow, tmp_path / "out", device="cpu")
    assert cut is not None
    brighter = read_features(Path(cut.features["raw pixels"])).values
    every = np.arange(120)
    assert brighter[every].mean() > 1.5 * pixels[every].mean()
    assert "--value-range 0.0,1000.0" in commands(cut, ["diti"])


def test_a_grey_model_and_one_of_colours_side_by_side(run: Path, make_pipeline: Any, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(str(tmp_path / "colour"))
    words = [
        "compare",
        f"grey={run}",
        f"colour={tmp_path / 'colour'}",
        "--data",
        "faces:160:1",
        "--baselines",
        "pixels",
    ]
    words += ["--edits", "--pairs", 4, "--learn", 200, "--epochs", 1, "--steps", 2, "--force", "--no-metrics"]
    text = invoke(*words, "--value-range", "0,255", "--shown", 1, "-o", tmp_path / "out", "--device", "cpu")
    assert "grey 16 px (center crop, grey), colour 16 px (center crop)" in " ".join(text.split())
    data = json.loads((tmp_path / "out" / "compare.json").read_text())
    grey, colour, pixels = data["entries"]
    assert grey["swaps"]["swaps"]
    assert colour["swaps"]["swaps"]
    assert pixels["dims"] == SIDE * SIDE, "pixels are read as the first model reads them"
    assert data["settings"]["value_range"] == [0, 255]
