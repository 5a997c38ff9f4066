"""Evidence as tables, sentences and pictures, and the charts over timesteps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_attribute_survival import atlas_of, lost_of

from diticli.chunks import ChunkLayout
from diticli.commands.evaluate_view import quarters_and_all, show_evidence
from diticli.evaluation.chunk_ablation import ChunkAblation, FeatureAblation
from diticli.evaluation.denoising import ModelGap
from diticli.evaluation.evidence import Evidence
from diticli.evaluation.evidence_report import evidence_sections, modularity_text, order_text
from diticli.evaluation.evidence_tables import between, gap_table, lost_table, use_table
from diticli.evaluation.order import compare_order
from diticli.models.reconstruction_gap import GapCurve
from diticli.pictures.time_charts import gap_chart, lost_chart
from diticli.statistics import Estimate

T = 1000
LAYOUT = ChunkLayout.uniform(chunks=2, latent_dim=4)
SURE = Estimate(value=0.5, low=0.4, high=0.6)


def gap() -> ModelGap:
    def curve(scale: float) -> GapCurve:
        values = tuple((scale * np.geomspace(1e-3, 1, 20)).tolist())
        grid = tuple(range(25, T, 50))
        options = {"stderr": values, "clamped": values, "clamped_stderr": values}
        return GapCurve(timesteps=grid, error=values, images=4, total_timesteps=T, **options)

    return ModelGap(without_features=curve(1.0), with_features=curve(0.25))


def use() -> FeatureAblation:
    groups = (
        ChunkAblation(chunks=(0,), timesteps=(0, 500), own=SURE, beyond=SURE, share=SURE, ignored=False),
        ChunkAblation(chunks=(1,), timesteps=(500, T), own=SURE, beyond=None, share=SURE, ignored=True),
    )
    return FeatureAblation(groups=groups, everything=SURE, gain=SURE, images=4)


def evidence() -> Evidence:
    centres: dict[str, float | None] = {"a": 100, "b": 400, "c": 900, "never": None}
    atlas, lost = atlas_of(centres), lost_of({"a": 50, "b": 300, "c": 800, "never": None})
    return Evidence(atlas=atlas, lost=lost, gap=gap(), use=use(), order=compare_order(atlas, lost))


def test_tables_say_what_was_measured() -> None:
    columns, rows = use_table(use())
    assert len(columns) == len(rows[0])
    assert rows[0] == ["0", "0-499", "50 [40, 60]", "50 [40, 60]", "50 [40, 60]", ""]
    assert rows[1][3] is None
    assert rows[1][5] == "ignored"
    _, rows = gap_table(gap())
    assert len(rows) == 10
    assert {row[3] for row in rows} == {"75.0"}
    found = evidence()
    assert found.lost is not None
    _, rows = lost_table(found.lost, found.atlas)
    assert [row[0] for row in rows] == ["a", "b", "c", "never"]
    assert rows[3][1] is None
    assert len(lost_table(found.lost)[1][0]) == 3
    assert between(Estimate(value=-0.001, low=-0.2, high=0.1)) == "0.00 [-0.20, 0.10]"


def test_the_order_is_put_into_words() -> None:
    assert "Too few" in order_text(None)
    assert "3 transfer centres" in order_text(evidence().order)


def test_a_single_chunk_has_neither_order_nor_modularity() -> None:
    atlas = atlas_of({"a": 500.0, "b": 500.0, "c": 500.0})
    assert "no modularity" in modularity_text(atlas)
    assert compare_order(atlas, lost_of({"a": 50, "b": 300, "c": 800})) is None


def test_every_part_has_a_section_and_a_picture(tmp_path: Path) -> None:
    one = ChunkLayout.uniform(chunks=1, latent_dim=4)
    sections = evidence_sections(evidence(), "model", one, tmp_path, 0)
    assert [section.title.partition(": ")[2] for section in sections] == [
        "what each chunk changes",
        "when attributes are lost",
        "the gap",
        "rise of the loss without a chunk",
    ]
    for section in sections:
        assert isinstance(section.picture, Path)
        with Image.open(section.picture) as image:
            assert image.width > 300
    assert evidence_sections(Evidence(), "model", one, tmp_path, 0) == []


def test_the_terminal_shows_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_evidence("model", evidence())
    told = capsys.readouterr()
    for text in ("exchanged alone", "hides half", "error of the predicted", "without a chunk"):
        assert text in told.out
    for text in ("no modularity", "Spearman", "Ignored: chunks 1."):
        assert text in told.err
    show_evidence("model", Evidence())
    assert capsys.readouterr().out == ""


def test_the_default_sets_are_quarters_and_all() -> None:
    assert quarters_and_all(LAYOUT) == [(0,), (1,), (0, 1)]
    assert quarters_and_all(ChunkLayout.uniform(chunks=1, latent_dim=4)) == [(0,)]
    assert quarters_and_all(ChunkLayout.uniform(chunks=16, latent_dim=16))[0] == (0, 1, 2, 3)


def test_charts_refuse_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 values expected"):
        gap_chart(tmp_path / "a.png", [1, 2, 3], {"a": [1.0]}, layout=LAYOUT)
    with pytest.raises(ValueError, match="2 x 3 values"):
        lost_chart(tmp_path / "a.png", [1, 2, 3], np.zeros((2, 2)), rows=["a", "b"], lost=[None, None])


def test_charts_leave_gaps_for_what_has_no_logarithm(tmp_path: Path) -> None:
    path = gap_chart(tmp_path / "a.png", [1, 2, 3], {"a": [1.0, 0.0, float("nan")]}, layout=LAYOUT)
    assert path.is_file()
