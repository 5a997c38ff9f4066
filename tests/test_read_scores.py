import json

import pytest

from diticli.probing.read_scores import ProbeScore, chance_warnings, read_scores, score_of


def test_attributes_read_by_chance_are_named(tmp_path):
    one = {"name": "smile", "value": -0.04, "low": -0.77, "high": 0.61, "base_rate": 0.0, "metric": "pearson_r"}
    report = {"attributes": [one, one | {"name": "hat", "value": 0.9, "low": 0.8, "high": 1.0, "base_rate": 0.5}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    scores = read_scores(tmp_path)
    assert scores["hat"] == ProbeScore(0.9, 0.8, 1.0, 0.5, "pearson_r")
    assert scores["hat"].short() == "Pearson r 0.90"
    assert score_of(scores, "hat=red") == scores["hat"], "a class is read as well as its category"
    assert score_of(scores, "age") is None
    (warning,) = chance_warnings(scores, ["hat", "smile", "age"])
    assert "smile: it scores -0.04 (-0.77 to 0.61), guessing 0.00" in warning


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"attributes": [1]}', '{"attributes": [{"name": "x", "value": "y"}]}']
)
def test_no_scores_where_there_is_no_report(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    assert read_scores(tmp_path) == read_scores(tmp_path / "none") == read_scores(None) == {}
