"""What a chunk does: planted editors whose atlas is known, modularity of known matrices, error paths."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawing_pipeline import SIDE, DrawingPipeline, oracle

from diticli.data.faces import FACTORS
from diticli.errors import ChunkError, ConfigError
from diticli.evaluation.images import EvaluationImages, evaluation_faces
from diticli.evaluation.settings import EvaluationSettings
from diticli.evaluation.swap_effects import centre_of_mass, measure_swap_effects
from diticli.models.pixels import normalise
from diticli.progress import SilentReporter
from diticli.statistics import completeness, concentration, disentanglement
from diticli.targets import Target

NAMES = [factor.name for factor in FACTORS]
K = len(FACTORS)


@pytest.fixture(scope="module")
def faces() -> EvaluationImages:
    return evaluation_faces(SIDE, learn=200, pairs=6, reporter=SilentReporter())


class CountingReporter(SilentReporter):
    """Adds up what was promised and what was done."""

    total = done = 0

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        self.total += total or 0

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        self.done += amount


def test_a_perfect_editor_has_a_diagonal_atlas(faces: EvaluationImages) -> None:
    pipeline: Any = DrawingPipeline(faces)
    reporter = CountingReporter()
    atlas = measure_swap_effects(pipeline, faces, oracle(pipeline), reporter=reporter)
    for row, name in enumerate(NAMES):
        # Two brows that differ by less than a pixel's grey level are one drawing, which the oracle reads as either.
        assert [share.value for share in atlas.shares[name]] == pytest.approx(np.eye(K)[row].tolist(), abs=0.02)
        assert atlas.together[name].value == pytest.approx(1, abs=0.02)
        assert atlas.concentration[name] == pytest.approx(1)
        start, end = atlas.timesteps[row]
        centre = atlas.centres[name]
        assert centre is not None
        assert (centre.low, centre.value, centre.high) == pytest.approx([(start + end) / 2] * 3)
    assert atlas.selectivity == pytest.approx([1.0] * K)
    assert atlas.completeness.value == atlas.disentanglement.value == pytest.approx(1)
    assert (atlas.pairs, atlas.attributes) == (6, tuple(NAMES))
    assert reporter.done == reporter.total == 12 * (1 + 1 + K + 1)


def test_groups_carry_what_their_chunks_carry_and_fewer_pairs_do(faces: EvaluationImages) -> None:
    pipeline: Any = DrawingPipeline(faces)
    settings = EvaluationSettings(batch_size=5)
    atlas = measure_swap_effects(pipeline, faces, oracle(pipeline), groups=[(0, 1), (12,)], pairs=3, settings=settings)
    assert [share.value for share in atlas.shares["light_direction"]] == pytest.approx([1, 0], abs=1e-6)
    assert atlas.together["stripes"].value == pytest.approx(1)
    assert atlas.together["skin"].value == pytest.approx(0, abs=1e-6)
    assert atlas.centres["skin"] is None
    assert atlas.concentration["skin"] is None
    assert atlas.selectivity[0] == pytest.approx(1 - np.log(2) / np.log(K))
    assert atlas.pairs == 3
    assert atlas.timesteps[1] == (924, 1000)


def test_attributes_that_cannot_be_read_do_not_count(faces: EvaluationImages) -> None:
    pipeline: Any = DrawingPipeline(faces)
    classifier = oracle(pipeline)
    classifier.reliability["background_hue"] = 0.1
    atlas = measure_swap_effects(pipeline, faces, classifier, groups=[(0, 2), (1,)])
    assert atlas.unreadable == ("background_hue",)
    assert atlas.selectivity == pytest.approx([1.0, 1.0])


def test_a_group_that_does_next_to_nothing_surely_gives_no_attribute_a_centre(faces: EvaluationImages) -> None:
    """However narrow its interval: otherwise the last chunks, whose tiny effects are the surest, would draw centres."""
    pipeline: Any = DrawingPipeline(faces)
    classifier = oracle(pipeline)
    before, exact = classifier.read(normalise(faces.judge_NCHW)), classifier.read

    def faintly(images: Any) -> np.ndarray:
        # Exchanges of chunk 12 (stripes) are read as if they carried a hundredth of the first factor, too.
        said = exact(images)
        other = before[np.arange(len(before)) ^ 1]
        if (
            len(said) == len(before)
            and np.allclose(said[:, 12], other[:, 12])
            and np.allclose(said[:, 1], before[:, 1])
        ):
            said = said.copy()
            said[:, 0] = before[:, 0] + 0.01 * (other - before)[:, 0]
        return said

    classifier.read = faintly
    settings = EvaluationSettings(batch_size=len(before))
    atlas = measure_swap_effects(pipeline, faces, classifier, groups=[(1,), (12,)], settings=settings)
    share = atlas.shares["background_hue"][1]
    assert share.value == pytest.approx(0.01)
    assert share.differs
    assert atlas.centres["background_hue"] is None
    assert atlas.concentration["background_hue"] is None
    assert atlas.centres["stripes"] is not None


def test_the_json_form_is_plain(faces: EvaluationImages) -> None:
    pipeline: Any = DrawingPipeline(faces)
    told = measure_swap_effects(pipeline, faces, oracle(pipeline), groups=[(0,), (1,)]).to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["shares"]["background_hue"][0]["value"] == pytest.approx(1)
    assert told["timesteps"] == [[0, 77], [77, 154]]
    assert "centre_draws" not in told


def test_a_real_pipeline_runs_in_any_batch_size(make_pipeline: Any) -> None:
    faces = evaluation_faces(16, learn=200, pairs=2, reporter=SilentReporter())
    pipeline = make_pipeline()
    classifier: Any = SimpleNamespace(
        attributes=[Target(name=name, kind="number", mean=0, std=1) for name in "rgb"],
        reliability={},
        read=lambda images: images.mean(dim=(2, 3)).double().numpy(),
    )
    found = [
        measure_swap_effects(pipeline, faces, classifier, settings=EvaluationSettings(steps=2, batch_size=size))
        for size in (128, 3)
    ]
    assert len(found[0].groups) == 4
    for name in "rgb":
        values = [[share.value for share in atlas.shares[name]] for atlas in found]
        assert values[0] == pytest.approx(values[1], abs=0.02)


@pytest.mark.parametrize("pairs", [0, 1, 7])
def test_an_impossible_number_of_pairs_is_refused(faces: EvaluationImages, pairs: int) -> None:
    pipeline: Any = DrawingPipeline(faces)
    with pytest.raises(ConfigError, match=f"{pairs} pairs"):
        measure_swap_effects(pipeline, faces, oracle(pipeline), pairs=pairs)


def test_chunks_that_do_not_exist_are_refused(faces: EvaluationImages) -> None:
    pipeline: Any = DrawingPipeline(faces)
    with pytest.raises(ChunkError, match="13"):
        measure_swap_effects(pipeline, faces, oracle(pipeline), groups=[(13,)])


def test_modularity_of_known_matrices() -> None:
    uniform, diagonal = np.ones((4, 4)), np.eye(4)
    assert completeness(uniform) == pytest.approx(0)
    assert disentanglement(uniform) == pytest.approx(0)
    assert completeness(diagonal) == disentanglement(diagonal) == pytest.approx(1)
    # One group does everything: every attribute is moved by one group only, and no group moves one only.
    one = np.zeros((4, 4))
    one[2] = 1
    assert completeness(one) == pytest.approx(1)
    assert disentanglement(one) == pytest.approx(0)
    # Half of each attribute in either of two groups.
    halves = np.array([[0.5, 0.5], [0.5, 0.5], [0, 0], [0, 0]])
    assert completeness(halves) == pytest.approx(0.5)


def test_a_group_counts_by_how_much_it_moves() -> None:
    effects = np.array([[9.0, 0.0], [0.5, 0.5]])
    assert disentanglement(effects) == pytest.approx(0.9)
    assert np.isnan(concentration(np.zeros((2, 3)))).all()
    assert np.isnan(concentration(np.ones((2, 1)))).all()
    assert np.isnan(completeness(np.zeros((2, 3))))


def test_the_centre_of_mass_weighs_times_by_effects() -> None:
    effects = np.array([[1.0, 0.0, 0.0], [3.0, 2.0, 0.0]])
    centres = centre_of_mass(effects, np.array([100.0, 500.0]))
    assert centres[:2] == pytest.approx([400, 500])
    assert np.isnan(centres[2])
