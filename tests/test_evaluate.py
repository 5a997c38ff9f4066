"""Faithfulness: the scores on cases whose answer is known, the reader, and the command."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from drawing_pipeline import SIDE, DrawingPipeline, oracle
from PIL import Image
from tiny_models import SIZE
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.data.faces import FACTORS, render_face, sample_factors, write_faces
from diticli.data.labels import LabelColumn
from diticli.errors import ConfigError
from diticli.evaluation import attribute_classifier, chunk_ablation, decoding
from diticli.evaluation.attribute_classifier import AttributeClassifier, train_classifier
from diticli.evaluation.evaluate import evaluate_model, reconstruction_problems
from diticli.evaluation.images import EvaluationImages, evaluation_faces, evaluation_folder
from diticli.evaluation.kept import KeptArrays
from diticli.evaluation.report import (
    FEW_PAIRS,
    check_readable,
    classifier_text,
    move_table,
    swap_legend,
    swap_table,
    verdict_text,
    write_evaluation,
)
from diticli.evaluation.scores import Change, change, drift_outside, side_effects, to_json, transfer_rates
from diticli.evaluation.settings import EvaluationSettings
from diticli.models import reconstruction_gap
from diticli.progress import SilentReporter
from diticli.targets import Target


def readings(seed: int = 0, pairs: int = 40) -> tuple[np.ndarray, np.ndarray]:
    before = np.random.default_rng(seed).normal(size=(2 * pairs, 3))
    return before, before[np.arange(2 * pairs) ^ 1]


def test_a_share_is_the_part_of_the_difference_that_was_carried_over() -> None:
    before, other = readings()
    wanted = np.array([0.0, 0.5, 1.0])
    shares = transfer_rates(before, before + wanted * (other - before), other)
    assert [s.value for s in shares] == pytest.approx(wanted)
    assert all(s.low == pytest.approx(s.value) and s.high == pytest.approx(s.value) for s in shares)


@pytest.mark.parametrize(("kept", "share"), [(1.0, 0.0), (0.0, 0.0), (0.3, 0.0), (0.0, 1.0), (0.5, 0.2), (0.9, -0.2)])
def test_what_is_erased_is_not_carried_over(kept: float, share: float) -> None:
    """An exchange that wipes an attribute out brings none of the partner's, though each comes nearer to the other."""
    before, other = readings(seed=3, pairs=7)
    before += [0.5, -2.0, 0.0]
    other = before[np.arange(len(before)) ^ 1]
    for constant in (0.0, 3.0):
        found = transfer_rates(before, kept * before + share * other + constant, other)
        assert [s.value for s in found] == pytest.approx([share] * 3, abs=1e-9)


def test_a_share_is_that_of_the_least_squares_fit() -> None:
    before, other = readings(seed=5, pairs=9)
    after = np.random.default_rng(6).normal(size=before.shape)
    for attribute, share in enumerate(transfer_rates(before, after, other)):
        design = np.column_stack([before[:, attribute], other[:, attribute], np.ones(len(before))])
        fit = np.linalg.lstsq(design, after[:, attribute], rcond=None)[0]
        assert share.value == pytest.approx(fit[1])


def test_the_interval_of_a_share_covers_the_truth_and_shrinks_with_more_pairs() -> None:
    widths = []
    for pairs in (20, 500):
        before, other = readings(pairs=pairs)
        noise = np.random.default_rng(1).normal(size=before.shape)
        share = transfer_rates(before, before + 0.5 * (other - before) + noise, other)[0]
        assert share.low < 0.5 < share.high
        widths.append(share.high - share.low)
    assert widths[1] < widths[0] / 2


def test_a_change_that_is_no_step_towards_the_partner_is_unexplained() -> None:
    before, other = readings(pairs=2000)
    after = before + 0.5 * (other - before)
    after[:, 1] += np.random.default_rng(2).choice([-0.3, 0.3], size=len(after))
    noise = side_effects(before, after, other, transfer_rates(before, after, other))
    assert noise[0] == pytest.approx(0, abs=1e-9)
    assert noise[1] == pytest.approx(0.3, rel=0.02)


def test_attributes_that_pairs_share_have_no_share() -> None:
    same = np.ones((8, 1))
    assert transfer_rates(same, same + 1, same)[0].value == 0.0


def test_a_move_changes_its_target_and_leaks_into_others() -> None:
    low, high = np.tile([-0.5, 0.1, 0.0], (5, 1)), np.tile([0.5, -0.1, 0.0], (5, 1))
    moved = change(low, high, ["a", "b", "c"], "a")
    assert moved.target == pytest.approx(0.5)
    assert moved.leakage == pytest.approx({"b": -0.1, "c": 0.0})
    assert moved.mean_leakage == pytest.approx(0.05)
    assert moved.selectivity == pytest.approx(0.5 / 0.6)


def test_a_move_that_changes_nothing_has_no_selectivity() -> None:
    assert Change(target=0.0, leakage={"b": 0.0}).selectivity == 0.0


def test_drift_looks_only_at_pixels_that_should_not_change() -> None:
    before, after = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)
    inside = np.zeros((2, 4, 4), bool)
    inside[:, :2] = True
    after[:, :2] = 200
    assert drift_outside(before, after, inside) == 0.0
    after[:, 3] = 10
    assert drift_outside(before, after, inside) == pytest.approx(5.0)
    assert np.isnan(drift_outside(before, after, np.ones_like(inside)))


def test_json_has_no_nan() -> None:
    assert to_json({"a": float("nan"), "b": (1.0, Change(target=1.0, leakage={}))})["a"] is None


@pytest.fixture(scope="module")
def faces() -> EvaluationImages:
    return evaluation_faces(SIDE, learn=600, pairs=4, reporter=SilentReporter())


@pytest.fixture(scope="module")
def small() -> EvaluationImages:
    return evaluation_faces(16, learn=600, pairs=1, reporter=SilentReporter())


def test_judged_faces_are_neither_those_to_learn_from_nor_those_of_training(faces: EvaluationImages) -> None:
    learnt = {image.numpy().tobytes() for image in faces.learn_NCHW}
    trained = {render_face(row, SIDE).transpose(2, 0, 1).tobytes() for row in sample_factors(0, range(50))}
    images = {image.numpy().tobytes() for image in faces.judge_NCHW}
    assert not images & learnt
    assert not images & trained
    drawn = faces.drawn(lambda factors: factors)
    assert (drawn.transpose(0, 3, 1, 2) == faces.judge_NCHW.numpy()).all()


def test_a_reader_learns_what_can_be_seen_and_says_what_it_cannot_read(small: EvaluationImages) -> None:
    labels = {name: small.labels[name] for name in ("background_hue", "hat")}
    noise = np.random.default_rng(0).random(len(small.learn_NCHW))
    classifier = train_classifier(
        small.learn_NCHW, {**labels, "nothing": LabelColumn("number", noise)}, epochs=6, batch_size=32
    )
    assert classifier.reliability["background_hue"] > 0.8
    assert classifier.reliability["hat"] > 0.9
    assert classifier.reliability["nothing"] < 0.2
    assert not classifier.training


def test_a_reader_is_the_same_for_the_same_seed_and_leaves_the_global_one_alone(small: EvaluationImages) -> None:
    labels = {"hat": small.labels["hat"]}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (train_classifier(small.learn_NCHW[:200], labels, epochs=1, seed=3) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_reader_skips_unknown_labels(small: EvaluationImages) -> None:
    holes = small.labels["background_hue"].values.astype(float).copy()
    holes[::2] = np.nan
    classifier = train_classifier(
        small.learn_NCHW, {"background_hue": LabelColumn("number", holes)}, epochs=6, batch_size=32
    )
    assert classifier.reliability["background_hue"] > 0.6


@pytest.mark.parametrize("count", [0, 199])
def test_too_few_images_teach_no_reader(faces: EvaluationImages, count: int) -> None:
    with pytest.raises(ConfigError, match="at least 200"):
        train_classifier(faces.learn_NCHW[:count], {"hat": LabelColumn("binary", np.zeros(count))})


def test_a_constant_attribute_cannot_be_read(faces: EvaluationImages) -> None:
    with pytest.raises(ConfigError, match="'hat' cannot be learned"):
        train_classifier(faces.learn_NCHW, {"hat": LabelColumn("binary", np.zeros(len(faces.learn_NCHW)))})


def test_a_perfect_editor_moves_what_it_should_and_nothing_else(faces: EvaluationImages) -> None:
    pipeline = DrawingPipeline(faces)
    sets = [(6,), (0, 2), tuple(range(13))]
    result = evaluate_model(pipeline, faces, oracle(pipeline), sets, moves=False)  # type: ignore[arg-type]
    names = [f.name for f in FACTORS]
    for score in result.swaps:
        for index, name in enumerate(names):
            assert score.shares[name].value == pytest.approx(float(index in score.chunks), abs=1e-6)
            assert score.unexplained[name] == pytest.approx(0, abs=1e-6)
        assert score.truth_psnr == float("inf")
        assert score.drift is None or np.isnan(score.drift) or score.drift == 0.0
    assert result.swaps[1].moved == ("background_hue", "skin")
    assert result.swaps[1].still_psnr is not None
    assert result.swaps[1].still_psnr < 30
    assert result.swaps[1].timesteps == (0, 231)
    assert max(result.reading_error.values()) == 0.0


def test_moves_are_measured_along_fitted_directions(faces: EvaluationImages) -> None:
    pipeline = DrawingPipeline(faces)
    settings = EvaluationSettings(amount=0.1, along="weight")
    result = evaluate_model(pipeline, faces, oracle(pipeline), [(0,)], settings=settings)  # type: ignore[arg-type]
    scores = {score.attribute: score for score in result.moves}
    assert set(scores) == {f.name for f in FACTORS}
    hue = scores["background_hue"].change
    assert hue.target > 0.05
    assert hue.selectivity > 0.8


def test_own_images_are_split_between_learning_and_judging(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 60, SIDE)
    split = evaluation_folder(
        str(tmp_path / "faces"),
        tmp_path / "faces" / "labels.csv",
        SIDE,
        learn=30,
        pairs=10,
        crop="center",
        seed=0,
        reporter=SilentReporter(),
    )
    assert (len(split.learn_NCHW), len(split.judge_NCHW)) == (30, 20)
    assert split.factors is None
    assert all(len(column.values) == 30 for column in split.columns.values())
    with pytest.raises(ConfigError, match="too few for 20 pairs"):
        evaluation_folder(
            str(tmp_path / "faces"),
            tmp_path / "faces" / "labels.csv",
            SIDE,
            learn=30,
            pairs=20,
            crop="center",
            seed=0,
            reporter=SilentReporter(),
        )
    kinds, silent = tmp_path / "kinds.csv", SilentReporter()
    kinds.write_text("filename,kind\n" + "".join(f"{i:06d}.png,{'abc'[i % 3]}\n" for i in range(60)))
    with pytest.raises(ConfigError, match=r"are categories .*kind"):
        evaluation_folder(
            str(tmp_path / "faces"), kinds, SIDE, learn=30, pairs=10, crop="center", seed=0, reporter=silent
        )


def test_people_are_kept_apart_or_it_is_said_that_they_may_not_be(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 60, SIDE)
    names = [f"{'ABCDEFGHIJKL'[i % 12]}nn_{i:04d}.png" for i in range(60)]  # 12 people, 5 pictures each
    text = (tmp_path / "faces" / "labels.csv").read_text()
    for i, name in enumerate(names):
        (tmp_path / "faces" / f"{i:06d}.png").rename(tmp_path / "faces" / name)
        text = text.replace(f"{i:06d}.png", name)
    (tmp_path / "faces" / "labels.csv").write_text(text)
    (tmp_path / "people.txt").write_text("".join(f"{name} {name[:3]}\n" for name in names))
    said: list[str] = []
    reporter = SilentReporter()
    reporter.warn = said.append  # type: ignore[method-assign]

    def split(groups: Path | None, pairs: int = 10) -> EvaluationImages:
        labels, where = tmp_path / "faces" / "labels.csv", str(tmp_path / "faces")
        options: dict[str, Any] = {"learn": 60, "pairs": pairs, "crop": "center", "seed": 0, "groups": groups}
        return evaluation_folder(where, labels, SIDE, reporter=reporter, **options)

    together = split(None)
    assert len(together.learn_NCHW) == 40
    assert any("12 persons" in line and "--groups" in line for line in said)
    said.clear()
    apart = split(tmp_path / "people.txt")
    assert not said
    assert (len(apart.learn_NCHW), len(apart.judge_NCHW)) == (40, 20)  # four people, whole
    with pytest.raises(ConfigError, match="too few for 16 pairs"):
        split(tmp_path / "people.txt", pairs=16)


def test_the_command_writes_a_report_for_every_model(
    make_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction_gap, "GRID", 8)
    monkeypatch.setattr(chunk_ablation, "POINTS", 4)
    for name in ("a", "b"):
        make_pipeline().save_pretrained(str(tmp_path / name))
    arguments = [
        "evaluate",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "--pairs",
        "4",
        "--learn",
        "200",
        "--epochs",
        "1",
    ]
    arguments += [
        "--steps",
        "2",
        "--no-moves",
        "--full",
        "--chunk-groups",
        "2",
        "--force",
        "--json",
        "-o",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr("sys.argv", ["diti", *arguments])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [len(model["swaps"]) for model in told["models"]] == [5, 5]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("exchanged chunks") >= 2
    for picture in ("edits", "shares", "atlas", "lost", "gap", "use"):
        with Image.open(tmp_path / "out" / f"{picture}-1.png") as image:
            assert image.info["diti:command"] == told["command"] == shlex.join(["diti", *arguments])
            assert f"{tmp_path / 'b'} (--model)" in image.info["diti:model_name"]
    assert "Repeat it" in page
    assert f"Model: {tmp_path / 'b'} (--model), {SIZE} px." in page, "which model, and why"
    assert told["models"][0]["facts"]["model_origin"] == f"{tmp_path / 'a'} (--model), {SIZE} px"
    model = told["models"][1]
    assert [len(shares) for shares in model["atlas"]["shares"].values()] == [2] * len(FACTORS)
    assert [group["chunks"] for group in model["use"]["groups"]] == [[0, 1], [2, 3]]
    assert len(model["gap"]["filled"]) == 8
    assert model["lost"] == told["models"][0]["lost"]
    for title in (
        "what each chunk changes",
        "when attributes are lost",
        "the gap",
        "rise of the loss without a chunk",
    ):
        assert title in page


def test_labels_and_data_belong_together(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert "labels" in result.output


def test_reader_shapes() -> None:
    attributes = [Target(name="a", kind="number", mean=0.0, std=1.0)]
    for side in (16, 32, 48, 64):
        assert AttributeClassifier(attributes, side)(torch.zeros(2, 3, side, side)).shape == (2, 1)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    make_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, images = make_pipeline(), evaluation_faces(16, learn=200, pairs=4, reporter=SilentReporter())
    settings = EvaluationSettings(steps=2, force=True, batch_size=4)
    calls: list[str] = []
    for module, name in ((attribute_classifier, "fit_classifier"), (decoding.Decoding, "_decoded")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **k: (calls.append(name), real(*a, **k))[1])

    def run(kept: KeptArrays, stop_after: int = 99) -> Any:
        calls.clear()
        classifier = train_classifier(images.learn_NCHW, images.labels, epochs=1, kept=kept)
        reporter = StoppingReporter(stop_after)
        sets = [(0,), (1,)]
        return evaluate_model(
            pipeline, images, classifier, sets, settings=settings, moves=False, reporter=reporter, kept=kept
        )

    whole = run(KeptArrays())
    assert calls == ["fit_classifier", *["_decoded"] * 6]
    kept = KeptArrays(tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        run(kept, stop_after=5)
    assert run(kept).to_dict() == whole.to_dict()
    assert calls == ["_decoded"] * 3
    next((tmp_path / "kept").glob("edits-*")).write_bytes(b"half a fi")
    assert run(kept).to_dict() == whole.to_dict()
    assert calls == ["_decoded"]


class StoppingReporter(SilentReporter):
    """Ctrl-C after some batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_bad_reconstructions_are_not_judged_without_force(
    make_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pipeline().save_pretrained(str(tmp_path / "a"))
    monkeypatch.setattr(attribute_classifier, "fit_classifier", lambda *_, **__: pytest.fail("learned first"))
    arguments = ["evaluate", str(tmp_path / "a"), "--pairs", "4", "--learn", "200", "--steps", "2"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "dB PSNR" in result.output
    assert "--force" in result.output
    assert not (tmp_path / "out").exists()


def test_far_below_the_models_own_is_not_judged_without_force(make_pipeline: Any) -> None:
    pipeline, settings = make_pipeline(), EvaluationSettings()
    pipeline.usual_psnr = 60.0
    assert reconstruction_problems(pipeline, 53.0, settings) == ()
    with pytest.raises(ConfigError, match=r"60\.0 dB is usual"):
        reconstruction_problems(pipeline, 43.0, settings)
    assert len(reconstruction_problems(pipeline, 43.0, EvaluationSettings(force=True))) == 1
    pipeline.usual_psnr = None
    assert reconstruction_problems(pipeline, 30.0, settings) == ()


def test_what_the_classifier_cannot_read_is_hidden_everywhere(faces: EvaluationImages, tmp_path: Path) -> None:
    pipeline: Any = DrawingPipeline(faces)
    classifier = oracle(pipeline)
    classifier.reliability["skin"] = 0.2
    settings = EvaluationSettings(amount=0.1, along="weight")
    result = evaluate_model(pipeline, faces, classifier, [(0, 2), (6,)], settings=settings)
    assert result.unreadable == ("skin",)
    assert {score.shares["skin"].low for score in result.swaps} == {None}
    mean = max(result.swaps, key=lambda score: len(score.chunks)).mean
    assert mean is not None
    assert mean.low is not None
    assert f"mean transfer rate {mean.text()}, {len(faces.judge_NCHW) // 2} pairs" in verdict_text(result)
    assert ("too few" in verdict_text(result)) == (len(faces.judge_NCHW) // 2 < FEW_PAIRS)
    assert "4 pairs are too few" in verdict_text(replace(result, images=8))
    others = [share.value for name, share in result.swaps[0].shares.items() if name != "skin"]
    assert mean.value == pytest.approx(np.mean(others))
    assert "Drift: mean change" in swap_legend(result)
    assert result.swaps[0].moved == ("background_hue",)
    assert all("skin" not in (move.attribute, *move.change.leakage) for move in result.moves)
    assert all("skin" not in [cell for row in table(result)[1] for cell in row] for table in (swap_table, move_table))
    told = write_evaluation([result], classifier, faces, tmp_path)
    assert told["unreadable"] == told["models"][0]["unreadable"] == ["skin"]
    page = (tmp_path / "report.html").read_text()
    assert page.index("The verdict") < page.index("Not judged: skin") < page.index("drawn: edits")
    assert page.index("drawn: edits") < page.index("drawn: exchanged chunks")
    assert (tmp_path / "edits-0.png").is_file()
    assert result.swaps[0].truth_psnr is not None
    classifier.reliability.update(dict.fromkeys(("skin", "hat", "smile", "glasses"), 0.2))
    result = evaluate_model(pipeline, faces, classifier, [(0, 2)], settings=settings)
    assert result.swaps[0].truth_psnr is None, "a drawing without them would say little"
    assert "Drift: not measured, as the classifier cannot read 4 attributes" in swap_legend(result)


def test_a_classifier_that_reads_nothing_judges_nothing() -> None:
    classifier: Any = SimpleNamespace(reliability={"a": 0.1, "b": 0.2})
    with pytest.raises(ConfigError, match="none of the attributes"):
        check_readable(classifier, force=False)
    check_readable(classifier, force=True)
    assert classifier_text(classifier).startswith("The attribute classifier reads 0 of 2 attributes")


def test_the_old_name_of_chunk_groups_still_works(tmp_path: Path) -> None:
    arguments = ["evaluate", "nowhere/at/all", "--groups", "2", "-o", str(tmp_path / "out")]
    assert "--chunk-groups" in CliRunner().invoke(app, arguments).output
