import json

import pytest

from diticli.probing.read_scores import ProbeScore, against_guessing, chance_warnings, read_scores, score_of
from diticli.probing.report import guessing_doubts


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


def test_scores_no_better_than_guessing_are_called_so():
    """Accuracy 0.138 where the most frequent class alone gives 0.340 looked like any other score."""
    scores = {"look": (0.138, 0.064, 0.213, 0.34), "eyes": (0.5, 0.4, 0.6, 0.45), "pose": (0.9, 0.8, 1.0, 0.3)}
    verdicts = {name: against_guessing(*numbers) for name, numbers in scores.items()}
    assert verdicts == {"look": "worse", "eyes": "no better", "pose": "better"}
    assert against_guessing(0.2, None, None, 0.3) == "worse"
    told = guessing_doubts(
        [
            {"name": name, "metric": "accuracy", "value": value, "base_rate": base, "than_guessing": verdicts[name]}
            for name, (value, _, _, base) in scores.items()
        ]
    )
    assert [line.partition(";")[0] for line in told] == [
        "Worse than guessing: look (accuracy 0.138, guessing 0.340)",
        "No better than guessing: eyes (accuracy 0.500, guessing 0.450)",
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"attributes": [1]}', '{"attributes": [{"name": "x", "value": "y"}]}']
)
def test_no_scores_where_there_is_no_report(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    assert read_scores(tmp_path) == read_scores(tmp_path / "none") == read_scores(None) == {}
