"""The table in docs/metrics.md: what each disentanglement score gives on codes made from known factors."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from diticli.data.labels import LabelColumn
from diticli.disentanglement import measure_disentanglement

ROWS = 2000
TABLE = Path(__file__).parents[1] / "docs" / "metrics.md"
SCORES = {
    "D": "disentanglement",
    "C": "completeness",
    "linear D": "linear_disentanglement",
    "linear C": "linear_completeness",
    "MIG": "mig",
    "SAP": "sap",
    "FactorVAE": "factor_vae",
    "modularity": "modularity",
    "InfoM": "info_modularity",
    "InfoE": "info_explicitness",
    "InfoC": "info_compactness",
    "TAD": "tad",
}
TOLERANCE = 0.03
"""Trees and votes differ a little between versions of scikit-learn and NumPy."""


def codes() -> dict[str, np.ndarray]:
    """Seven codes of four independent factors with ten equally frequent values each."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 10, size=(ROWS, 4)) / 4.5 - 1
    outliers = factors.copy()
    outliers[:10] = 100
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    return {
        "perfect": factors,
        "permuted": factors[:, [2, 0, 3, 1]],
        "rotated": factors @ rotation,
        "doubled": np.concatenate([factors, factors], axis=1),
        "with a constant dim": np.concatenate([factors, np.full((ROWS, 1), 7.0)], axis=1),
        "with ten outliers": outliers,
        "noise": rng.standard_normal((ROWS, 4)),
    }


@cache
def measured(name: str) -> dict[str, float | None]:
    made = codes()
    factors = made["perfect"]
    columns = {f"f{i}": LabelColumn("number", factors[:, i].astype(np.float32)) for i in range(4)}
    report = measure_disentanglement(made[name].astype(np.float32), columns, None)
    return {"info_explicitness": report.info_explicitness} | asdict(report.dims)


def documented() -> dict[str, dict[str, float]]:
    """Rows of the table by code."""
    lines = TABLE.read_text().partition("## Known codes")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, _, *body = rows
    return {row[0]: {k: float(v) for k, v in zip(head[1:], row[1:], strict=True) if v != "null"} for row in body}


@pytest.mark.parametrize("name", list(codes()))
def test_the_documented_scores_are_those_of_the_code(name: str) -> None:
    said = documented()[name]
    found = measured(name)
    for title, field in SCORES.items():
        value = found[field]
        assert (title in said) == (value is not None), title
        if value is not None:
            assert value == pytest.approx(said[title], abs=TOLERANCE), title


def test_order_and_constant_dims_change_nothing_and_a_doubled_code_is_less_complete() -> None:
    perfect, doubled = measured("perfect"), measured("doubled")
    for name in ("permuted", "with a constant dim"):
        assert measured(name)["mig"] == pytest.approx(perfect["mig"], abs=1e-6)
        for score in ("completeness", "info_modularity", "info_compactness"):
            assert measured(name)[score] == pytest.approx(perfect[score], abs=0.01)
    assert doubled["mig"] == pytest.approx(0, abs=1e-6)
    assert doubled["sap"] == pytest.approx(0, abs=1e-6)
    assert doubled["completeness"] < perfect["completeness"] - 0.1
    assert doubled["info_modularity"] == pytest.approx(perfect["info_modularity"], abs=0.02)
    assert doubled["info_compactness"] < 0.5
