"""`diti compare`: one protocol for all, results kept, honest differences, and pages that hostile names cannot break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_report import HOSTILE, Checker
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.comparison import pca, run
from diticli.comparison.entry_specs import EntrySpec, parse_baselines, parse_entries
from diticli.comparison.pca import pca_features
from diticli.comparison.report import write_comparison
from diticli.comparison.run import Comparison, compare
from diticli.comparison.scores import (
    Difference,
    EntryScores,
    baselines_ahead,
    difference,
    holm,
    verdicts,
    with_verdicts,
)
from diticli.comparison.settings import DEFAULT_DATA, CompareSettings
from diticli.data.faces import write_faces
from diticli.errors import ConfigError, DiTiError
from diticli.features.read import read_features
from diticli.progress import SilentReporter
from diticli.statistics import Estimate, decimals

FACES = "faces:160:1"
SMALL: dict[str, Any] = {"data": (FACES,), "shown": 1, "steps": 2, "precision": "fp32", "metrics": False}


@pytest.fixture(scope="module")
def models(make_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTi model, a PDAE one (a single chunk) and an encoder alone."""
    from diticli.chunks import ChunkLayout

    folder = tmp_path_factory.mktemp("models")
    make_pipeline().save_pretrained(str(folder / "diti"))
    one = ChunkLayout.uniform(chunks=1, latent_dim=16).to_dict()
    make_pipeline(chunk_layout=one).save_pretrained(str(folder / "pdae"))
    make_pipeline(unet=None, shift_decoder=None).save_pretrained(str(folder / "simclr"))
    return folder


@pytest.fixture(scope="module")
def compared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("out")
    named = parse_entries([str(models / name) for name in ("diti", "pdae", "simclr")])
    result = compare(named, CompareSettings(**SMALL), out, device="cpu")
    assert result is not None
    return result, out


class Notes(SilentReporter):
    """What was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)

    def warn(self, message: str) -> None:
        self.lines.append(message)


# who is compared


def test_entries_are_named_after_their_folders(tmp_path: Path) -> None:
    named = parse_entries(["runs/demo", "runs/pdae/model", "b=runs/x", "runs/y/feats.npy", "hub/id"], ())
    assert [c.name for c in named] == ["demo", "pdae", "b", "y", "id"]
    assert [c.kind for c in named] == ["model", "model", "model", "features", "model"]
    assert named[2].source == "runs/x"
    built_in = parse_entries(["a"], untrained=2, seed=3)[1:]
    assert [(c.kind, c.seed) for c in built_in] == [("pixels", 0), ("pca", 0), ("untrained", 3), ("untrained", 4)]
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert parse_entries([str(odd)], ())[0].source == str(odd)


@pytest.mark.parametrize("name", ["pixels", "pca", "untrained", "base:50", "x=pixels"])
def test_a_baseline_among_the_runs_is_no_model_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is a built-in baseline, not a run") as caught:
        parse_entries(["shipped", name], ())
    baseline = name.removeprefix("x=")
    assert f"--baselines {baseline}" in caught.value.remedy
    (tmp_path / baseline).mkdir()
    assert parse_entries(["shipped", name], ())[1].source == baseline, "a run that is there"


def test_equal_names_take_the_whole_path_or_are_refused() -> None:
    assert [c.name for c in parse_entries(["x/run", "y/run"], ())] == ["x/run", "y/run"]
    for runs in (["runs/a", "runs/a"], ["b=runs/a", "b=runs/c"], ["raw pixels=runs/a"]):
        with pytest.raises(ConfigError, match="2 entries are called") as caught:
            parse_entries(runs, ("pixels",))
        assert "first=runs/a" in caught.value.remedy


def test_baselines() -> None:
    assert parse_baselines("pca, Pixels") == ("pixels", "pca")
    assert parse_baselines("none") == ()
    for text in ("", "pcaa", "none,pca"):
        with pytest.raises(ConfigError, match="no such baselines"):
            parse_baselines(text)


def test_the_default_faces_are_those_of_the_demo() -> None:
    from diticli.demo import HELD_OUT_SEED

    assert f"faces:4000:{HELD_OUT_SEED}" == DEFAULT_DATA


# differences


def test_holm_and_verdicts() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    rng = np.random.default_rng(0)
    first = rng.normal(0.5, 0.02, 1000)
    better = difference(0.1, first + 0.1 + rng.normal(0, 0.01, 1000), first)
    same = difference(0.0, first + rng.normal(0, 0.01, 1000), first)
    assert better is not None
    assert better.low < 0.1 < better.high
    assert [d.verdict for d in with_verdicts([better, same], "r2") if d] == ["better", "no clear difference"]
    assert [d.verdict for d in with_verdicts([better, None], "mse") if d] == ["worse"]
    assert difference(0.0, np.full(3, np.nan), np.zeros(3)) is None


def test_baselines_that_are_better_are_named_with_their_scores() -> None:
    def scores(value: float, **differences: Any) -> EntryScores:
        means = {"number": {"r2": Estimate(value=value, low=value - 0.02, high=value + 0.03)}}
        return EntryScores(attributes={}, means=means, differences=differences, by_attribute={})

    def gap(value: float, verdict: str) -> dict[str, Difference]:
        return {"r2": Difference(value=value, low=0, high=0, p=0, verdict=verdict)}

    found = {
        "diti": scores(0.8),
        "base": scores(0.9, number=gap(0.1, "better")),
        "pixels": scores(0.7, number=gap(-0.1, "worse")),
        "near": scores(0.81, number=gap(0.01, "no clear difference")),
        "pdae": scores(0.95, number=gap(0.15, "better")),
    }
    said = baselines_ahead(found, ["base", "pixels", "near"], 40)
    headline = "mean R2 0.90 [0.88, 0.93] instead of 0.80 [0.78, 0.83]"
    assert said == f"Better than diti, without its training, on 40 test images: base ({headline})."
    assert verdicts(found, 40)[0] == f"base beside diti, 40 test images, too few to say much: {headline} (better)."
    assert verdicts(found, 400)[0] == f"base beside diti, 400 test images: {headline} (better)."
    assert baselines_ahead(found, ["pixels"], 40) == ""


def test_pairing_tells_apart_what_single_intervals_cannot() -> None:
    """Both scores move by 0.1 from resample to resample, but together."""
    rng = np.random.default_rng(0)
    first = rng.normal(0.5, 0.1, 1000)
    found = with_verdicts([difference(0.02, first + rng.normal(0.02, 0.005, 1000), first)], "r2")[0]
    assert found is not None
    assert found.verdict == "better"
    assert found.high - found.low < 0.03


# PCA


def test_pca_sees_training_rows_only_and_keeps_their_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(60, 3)) @ rng.normal(size=(3, 8))).astype(np.float32)
    train = np.arange(0, 40)
    found = pca_features(values, np.arange(60), train, 3)
    centred = values - values[train].mean(axis=0)
    assert np.allclose(found @ found.T, centred @ centred.T, rtol=1e-3, atol=1e-3)
    changed = values.copy()
    changed[40:] += 100
    assert np.allclose(pca_features(changed, np.arange(60), train, 3)[:40], found[:40])
    monkeypatch.setattr(pca, "FIT_ROWS", 20)
    assert pca_features(values, np.arange(60), train, 3, seed=1).shape == (60, 3)
    few = pca_features(values, np.arange(60), train[:3], 3)
    assert few.shape == (60, 2), "three centred rows span a plane; a third axis would be noise, scaled up by the probe"
    assert pca_features(values, np.arange(60), train[:5], 30).shape == (60, 4), "as many as rows can tell"


# the protocol


def test_one_protocol_for_all(compared: tuple[Comparison, Path]) -> None:
    result, _ = compared
    names = ["diti", "pdae", "simclr", "raw pixels", "PCA of pixels", "untrained encoder, seed 0"]
    assert [s.name for s in result.entries] == list(result.scores) == names
    assert [s.dims for s in result.entries] == [16, 16, 16, 3 * 16**2, 16, 16]
    assert result.protocol.split.sizes == {"train": 112, "val": 24, "test": 24}
    for name, probed in result.probed.items():
        assert probed.report["split"] == result.protocol.split.sizes
        for item in probed.report["attributes"]:
            score = next(iter(result.scores[name].attributes[item["name"]].values()))
            assert score.value == pytest.approx(item["value"], abs=1e-4), "as the probe itself says"
    pixels = result.scores["raw pixels"]
    assert pixels.means["number"]["r2"].value > result.scores["diti"].means["number"]["r2"].value
    assert pixels.differences["number"]["r2"].verdict == "better"  # type: ignore[union-attr]
    assert result.scores["diti"].differences == {}
    same = result.scores["pdae"].differences["number"]["r2"]
    assert same is not None
    assert (same.value, same.verdict) == (pytest.approx(0, abs=1e-6), "no clear difference"), "its encoder is the same"


def test_scores_are_those_of_encode_and_probe(compared: tuple[Comparison, Path], models: Path, tmp_path: Path) -> None:
    """The commands that the report names give the numbers of its table."""
    result, _ = compared
    cli = CliRunner()
    write_faces(tmp_path / "f", 160, 16, 1)
    encode = ["encode", FACES, "-o", str(tmp_path / "x.npy"), "--model", str(models / "diti"), "--precision", "fp32"]
    assert cli.invoke(app, [*encode, "--device", "cpu"]).exit_code == 0
    probe = ["probe", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "f" / "labels.csv"), "--json"]
    told = json.loads(cli.invoke(app, [*probe, "-o", str(tmp_path / "p")]).stdout)
    for kind, means in result.scores["diti"].means.items():
        for metric, score in means.items():
            assert told["means"][kind][metric] == pytest.approx(score.value, abs=1e-5)


def test_untrained_encoders_have_the_architecture_and_their_own_weights(compared: tuple[Comparison, Path]) -> None:
    result, out = compared
    hashes = {s.model_hash for s in result.entries if s.spec.kind in ("model", "untrained")}
    assert len(hashes) == 4
    features = read_features(Path(result.features["untrained encoder, seed 0"]))
    assert features.values.shape == (160, 16)
    assert len(list((out / run.FEATURES).iterdir())) == 5, "PCA and raw pixels share theirs"


def test_what_is_done_is_not_done_again(
    compared: tuple[Comparison, Path], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, out = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("done again")

    for place in ("encoding.encode_images", "probes.probe_features", "pictures.edit_pair"):
        monkeypatch.setattr(f"diticli.comparison.{place}", refuse)
    renamed = parse_entries([f"x={models / 'pdae'}", str(models / "diti")], ())
    again = compare(renamed, CompareSettings(**SMALL), out, device="cpu")
    assert again is not None
    assert again.scores["x"].means == result.scores["pdae"].means
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_an_interrupted_comparison_goes_on(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = parse_entries([str(models / "simclr")], ("pixels",))
    settings = CompareSettings(**SMALL)
    make = run.ProbeStore.make

    def stop(self: Any, entry: Any, reporter: Any) -> None:
        if entry.name == "raw pixels":
            raise KeyboardInterrupt
        make(self, entry, reporter)

    with monkeypatch.context() as patched:
        patched.setattr(run.ProbeStore, "make", stop)
        with pytest.raises(KeyboardInterrupt):
            compare(named, settings, tmp_path / "out", device="cpu")
    kept = sorted((tmp_path / "out" / run.RESULTS).glob("*.json"))
    assert len(kept) == 1
    notes = Notes()
    assert compare(named, settings, tmp_path / "out", device="cpu", reporter=notes) is not None
    assert [line for line in notes.lines if line.startswith(("Probing", "Encoding"))] == ["Probing raw pixels."]
    kept[0].write_text("{")
    assert compare(named, settings, tmp_path / "out", device="cpu") is not None, "a damaged result is made again"


def test_models_of_different_sizes_are_compared_and_it_is_said(
    models: Path, make_pipeline: Any, tmp_path: Path
) -> None:
    from diticli.models.encoder import SemanticEncoder

    large = SemanticEncoder(32, 3, (8, 8), 16, 8, 2, 4)
    make_pipeline(unet=None, shift_decoder=None, encoder=large).save_pretrained(str(tmp_path / "large"))
    notes = Notes()
    named = parse_entries([str(tmp_path / "large"), str(models / "simclr")], ("pixels", "pca"))
    settings = CompareSettings(**SMALL, pixel_side=16)
    result = compare(named, settings, tmp_path / "out", device="cpu", reporter=notes)
    assert result is not None
    assert [s.resolution for s in result.entries] == [32, 16, 16, 16]
    encoded = [line for line in notes.lines if line.startswith("Encoding")]
    assert encoded == [f"Encoding {n} of 3: {name}." for n, name in enumerate(("large", "simclr", "raw pixels"), 1)]
    assert "large 32 px (center crop), simclr 16 px (center crop)" in result.notes[0]
    assert "reduced to 16x16" in result.notes[1]
    assert set(result.notes) < set(notes.lines)


def test_a_model_on_its_own_training_images_is_told(models: Path, tmp_path: Path) -> None:
    from diticli.comparison.entries import Entries
    from diticli.comparison.images import ComparedImages

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(models / "simclr")
    for seed, told in ((1, True), (0, False)):
        text = json.dumps({"data": {"kind": "faces", "seed": seed, "count": 9}})
        (tmp_path / "run" / "config.json").write_text(text)
        entries = Entries(parse_entries([str(tmp_path / "run")], ()), pixel_side=32, device=torch.device("cpu"))
        fingerprint = ComparedImages(CompareSettings(**SMALL)).fingerprint()
        assert fingerprint is not None
        assert run._trained_on(entries.all[0], fingerprint) is told


# what is written


def test_the_page_holds_everything_in_itself(compared: tuple[Comparison, Path], tmp_path: Path) -> None:
    result, _ = compared
    data = write_comparison(result, tmp_path, ["diti", "compare", "a b"])
    page = (tmp_path / "report.html").read_text()
    assert "the reconstruction has" in page, "two steps give images back badly"
    seen = Checker(page)
    assert seen.count("script") == 1, "the one that sorts"
    assert seen.count("img") == 2
    assert page.index("simclr beside diti, 24 test images, too few to say much: ") < page.index("<table")
    assert "http" not in page
    assert page.count('class="sortable"') >= 3
    assert json.loads((tmp_path / "compare.json").read_text()) == data
    assert data["compared_with"] == "diti"
    assert data["entries"][1]["differences"]["number"]["r2"]["verdict"] == "no clear difference"
    assert data["versions"]["torch"]
    script = (tmp_path / "commands.sh").read_text()
    assert "diti compare 'a b'" in script
    assert "diti faces compared-faces -n 160 --seed 1 --size 16" in script
    assert script.count("diti encode") == 3


def test_hostile_names_stay_text(models: Path, tmp_path: Path) -> None:
    hostile = [EntrySpec(name=HOSTILE, kind="model", source=str(models / "simclr"))]
    result = compare(hostile, CompareSettings(**SMALL), tmp_path, device="cpu")
    assert result is not None
    write_comparison(result, tmp_path, ["diti", "compare", HOSTILE + "; rm -rf $HOME"])
    page = (tmp_path / "report.html").read_text()
    seen = Checker(page)
    assert seen.count("script") == 1
    assert "<script>alert" not in page
    assert "onerror" not in {name for _, attributes in seen.seen for name in attributes}
    assert "'\"'\"'" in (tmp_path / "commands.sh").read_text(), "quoted for the shell"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("features", "results", "report.html", "compare.json", "commands.sh", "scores.png")
    }


def test_the_command(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    cli = CliRunner()
    arguments = [
        "compare",
        str(models / "diti"),
        str(models / "simclr"),
        "--data",
        FACES,
        "--baselines",
        "pca",
        "--no-metrics",
    ]
    arguments += ["--steps", "2", "--shown", "1", "--device", "cpu", "-o", str(tmp_path / "out")]
    planned = cli.invoke(app, [*arguments, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert [c["to_encode"] for c in json.loads(planned.stdout)["entries"]] == [160, 160, 160]
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"
    assert "160 images to encode" in cli.invoke(app, [*arguments, "--dry-run"]).output
    edits = ["--edits", "--pairs", "4", "--learn", "200", "--epochs", "1"]
    refused = cli.invoke(app, [*arguments, *edits])
    assert refused.exit_code == 2, "edits are not judged by reconstructions of a few dB"
    assert "--force" in refused.output
    edits.append("--force")
    done = cli.invoke(app, [*arguments, *edits, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "out" / "compare.json").read_text())
    swaps = told["entries"][0]["swaps"]["swaps"]
    assert [swap["chunks"] for swap in swaps] == [[0], [1], [2], [3], [0, 1, 2, 3]]
    assert told["entries"][1]["swaps"] is None, "an encoder alone cannot edit"
    shown = cli.invoke(app, [*arguments, *edits])
    assert "no clear difference" in shown.output
    assert "PCA of pixels" in shown.output
    assert "here" in cli.invoke(app, [*arguments, "--dry-run"]).output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Transfer rates of exchanged chunks" in page


@pytest.mark.parametrize(
    ("low", "high", "count"),
    [
        (0.857, 0.928, 2),
        (0.9991, 0.9999, 3),
        (-357142.9, -143.1, 0),
        (-1.2, 0.9, 1),
        (0.88, 1.08, 2),
        (0.003, 0.111, 3),
        (1.0, 1.0, 2),
    ],
)
def test_numbers_have_the_digits_that_their_intervals_allow(low: float, high: float, count: int) -> None:
    assert decimals(low, high) == count


def test_errors_of_the_command(models: Path, tmp_path: Path) -> None:
    cli = CliRunner()
    run_twice = cli.invoke(app, ["compare", str(models / "diti"), str(models / "diti"), "--dry-run"])
    assert run_twice.exit_code == 2
    assert "entries are called" in run_twice.output
    assert cli.invoke(app, ["compare", str(models / "diti"), "--data", str(tmp_path)]).exit_code == 2
    assert cli.invoke(app, ["compare", str(models / "diti"), "--baselines", "x", "--dry-run"]).exit_code == 2
    assert issubclass(ConfigError, DiTiError)
