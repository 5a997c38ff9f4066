"""The frozen base's own features: diffusers' activations, the same in any batch and any file, encoded and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import UNET_SHAPES
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.comparison.base_choice import Place, choose_place
from diticli.comparison.entry_specs import parse_baselines, parse_entries
from diticli.comparison.run import compare
from diticli.comparison.settings import CompareSettings
from diticli.data.labels import LabelColumn
from diticli.data.splits import split_rows
from diticli.errors import ConfigError, ModelError
from diticli.features.read import read_features
from diticli.models.base_features import (
    BaseFeatures,
    BaseSpec,
    activations,
    block_widths,
    candidate_timesteps,
    parse_base,
    pixel_noise,
)
from diticli.models.frozen import FrozenBase
from diticli.models.pipeline import unet_to_diffusers


def images(count: int = 5, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def features_of(pipeline: Any, spec: BaseSpec, **options: Any) -> BaseFeatures:
    return BaseFeatures(pipeline.unet, pipeline.schedule, spec, precision="fp32", **options)


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_every_block_is_that_of_diffusers(make_unet: Any, shape: str) -> None:
    unet = make_unet(shape)
    size, levels = unet.config.sample_size, len(unet.config.block_out_channels)
    x, t_1 = torch.randn(2, 3, size, size), torch.tensor([417])
    theirs, seen = unet_to_diffusers(unet), {}
    modules = {"mid": theirs.mid_block}
    modules |= {f"{way}{i}": getattr(theirs, f"{way}_blocks")[i] for way in ("down", "up") for i in range(levels)}
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    frozen = FrozenBase(unet, torch.float32)
    with torch.no_grad():
        theirs(x, t_1)
        for name in modules:
            expected = seen[name][0] if name.startswith("down") else seen[name]
            ours = activations(frozen, x, t_1, (name,))[name]
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
            assert ours.shape[1] == block_widths(unet)[name]
        together = activations(frozen, x, t_1, tuple(modules))
        for name in modules:
            torch.testing.assert_close(together[name], activations(frozen, x, t_1, (name,))[name])


def test_features_are_means_of_the_middle_block_on_the_noised_image(make_pipeline: Any) -> None:
    pipeline, given, seen = make_pipeline(), images(), []
    found = features_of(pipeline, parse_base("base:200"))(given)
    theirs = unet_to_diffusers(pipeline.unet)
    theirs.mid_block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    bar = pipeline.schedule.alphas_cumprod[200]
    x_t = bar.sqrt() * (given.float() / 127.5 - 1) + (1 - bar).sqrt() * pixel_noise(given)
    with torch.no_grad():
        theirs(x_t, torch.tensor([200]))
    torch.testing.assert_close(found, seen[0].mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


def test_an_image_has_the_same_features_in_any_batch(make_pipeline: Any) -> None:
    given = images()
    whole = features_of(make_pipeline(), BaseSpec())(given)
    assert torch.equal(whole, features_of(make_pipeline(), BaseSpec())(given))
    single = torch.cat([features_of(make_pipeline(), BaseSpec())(image[None]) for image in given.flip(0)]).flip(0)
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)
    noise = pixel_noise(given)
    assert torch.equal(noise.flip(0), pixel_noise(given.flip(0)))
    assert abs(float(torch.corrcoef(noise.flatten(1))[0, 1])) < 0.2
    assert abs(float(noise.std()) - 1) < 0.1


def test_timesteps_follow_one_another(make_pipeline: Any) -> None:
    pipeline, given = make_pipeline(), images(2)
    both = features_of(pipeline, BaseSpec(), timesteps=(10, 500))(given)
    parts = [features_of(pipeline, BaseSpec(timestep=t))(given) for t in (10, 500)]
    torch.testing.assert_close(both, torch.cat(parts, dim=1))
    three = features_of(pipeline, BaseSpec(), timesteps=(10, 500), blocks=("down0", "mid"))(given)
    parts = [features_of(pipeline, BaseSpec(timestep=t, block=b))(given) for t in (10, 500) for b in ("down0", "mid")]
    torch.testing.assert_close(three, torch.cat(parts, dim=1))
    assert features_of(pipeline, BaseSpec()).timesteps == (50,)
    assert candidate_timesteps(1000) == (10, 25, 50, 100, 200)
    assert candidate_timesteps(10) == (0, 1, 2)


def test_words() -> None:
    assert parse_base("base") == BaseSpec()
    assert parse_base("Base:7") == BaseSpec(timestep=7)
    assert parse_base("base:7:up1") == BaseSpec(timestep=7, block="up1")
    for text in ("bas", "base:", "base:x", "base:-1", "base:1:", "base:1:left", "base:1:mid:2", "base:٣", ""):
        with pytest.raises(ConfigError, match="names no features of the base") as caught:
            parse_base(text)
        assert "base:50:mid" in caught.value.remedy


@pytest.mark.parametrize(("text", "says"), [("base:1000", "0 to 999"), ("base:5:up2", "down0, down1, mid, up0, up1")])
def test_what_the_base_does_not_have_is_refused(make_pipeline: Any, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        features_of(make_pipeline(), parse_base(text))
    assert says in caught.value.remedy


# encoded and probed


def test_encode_and_probe(make_pipeline: Any, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    pipeline.save_pretrained(str(tmp_path / "model"))
    out, runner = tmp_path / "base.npy", CliRunner()
    encode = ["encode", "faces:90:1", "-o", str(out), "--model", str(tmp_path / "model"), "--precision", "fp32"]
    done = runner.invoke(app, [*encode, "--features", "base:30", "--batch-size", "40"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = read_features(out)
    assert found.values.shape == (90, 16)
    assert found.meta is not None
    assert found.meta.layout is None
    assert found.meta.model_hash not in ("", pipeline.model_hash)
    said = dict(found.meta.preprocessing)
    assert (said["features"], said["timestep"], said["block"], said["pooling"]) == ("base", 30, "mid", "mean")
    again = runner.invoke(app, [*encode[:2], "-o", str(tmp_path / "b.npy"), *encode[4:], "--features", "base:30"])
    assert again.exit_code == 0
    np.testing.assert_allclose(read_features(tmp_path / "b.npy").values, found.values, rtol=1e-4, atol=1e-5)

    faces = runner.invoke(app, ["faces", str(tmp_path / "faces"), "-n", "90", "--seed", "1", "--size", "16"])
    assert faces.exit_code == 0
    labels = str(tmp_path / "faces" / "labels.csv")
    probed = runner.invoke(
        app, ["probe", str(out), "--labels", labels, "-o", str(tmp_path / "probe")], catch_exceptions=False
    )
    assert probed.exit_code == 0, probed.output


def test_an_encoder_alone_has_no_base(make_pipeline: Any, tmp_path: Path) -> None:
    from diticli.data.images import open_images
    from diticli.encoding.encode import encode_with

    alone = make_pipeline(unet=None, shift_decoder=None)
    with pytest.raises(ModelError, match="encoder alone"):
        encode_with(alone, open_images("faces:3", 16), tmp_path / "f.npy", base=BaseSpec())


# compared


def test_validation_rows_choose_the_place_and_test_rows_do_not() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=120)
    columns = {"size": LabelColumn("number", truth)}
    split = split_rows(120, seed=0)
    values = rng.normal(size=(150, 9)).astype(np.float32)
    rows = np.arange(20, 140)
    values[rows, 4] = truth
    places = (Place(10, "mid", 3), Place(10, "up0", 4), Place(50, "mid", 2))
    found, merits = choose_place(values, columns, rows, split, places)
    np.testing.assert_array_equal(found, values[rows, 3:7])
    assert merits[places[1]] > 0.95 > max(merits[places[0]], merits[places[2]])
    values[rows[split.test]] = 7
    assert choose_place(values, columns, rows, split, places)[1] == merits


def test_baselines_of_the_base_are_named_by_what_they_are() -> None:
    words = parse_baselines("base:5:up1, pca,base,base")
    assert words == ("pca", "base:5:up1", "base")
    specs = parse_entries(["a"], words)[2:]
    assert [(s.name, s.kind) for s in specs] == [("base features, t = 5, up1", "base"), ("base features", "base")]
    for text in ("base:x", "basement"):
        with pytest.raises(ConfigError):
            parse_baselines(text)


def test_compare_has_the_base_beside_the_others(make_pipeline: Any, tmp_path: Path) -> None:
    make_pipeline(unet=None, shift_decoder=None).save_pretrained(str(tmp_path / "alone"))
    make_pipeline().save_pretrained(str(tmp_path / "diti"))
    settings = CompareSettings(data=("faces:160:1",), shown=0, steps=2, precision="fp32", metrics=False)
    runs = [str(tmp_path / "alone"), str(tmp_path / "diti")]
    specs = parse_entries(runs, ("base", "base:200"))
    result = compare(specs, settings, tmp_path / "out", device="cpu")
    assert result is not None
    chosen, given = result.entries[2:]
    assert (chosen.dims, given.dims, given.places) == (16, 16, (Place(200, "mid", 16),))
    assert "mid block at t = 200" in given.describe()
    (note,) = [note for note in result.notes if note.startswith("base features")]
    assert "chosen by the mean score on validation images (each block at its best timestep: down0 0." in note
    assert read_features(Path(result.features["base features"])).values.shape == (160, 5 * (8 + 16 + 16 + 16 + 8))
    assert result.probed["base features"].report["latent_dim"] in (8, 16)
    assert "best block and timestep" in chosen.describe()
    again = compare(specs, settings, tmp_path / "out", device="cpu")
    assert again is not None
    assert note in again.notes
    with pytest.raises(ConfigError, match="frozen base"):
        compare(parse_entries(runs[:1], ("base",)), settings, tmp_path / "none", device="cpu")
