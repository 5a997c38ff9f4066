"""Tables on the terminal: whole words and numbers at any width."""

import re

import pytest

from diticli.commands.console import show_table

COLUMNS = ["attribute", "metric", "value", "95 % interval", "base rate", "source"]
ROWS = [
    ["expression", "average precision", "1,142,083", "0.123 to 0.456", "0.500", "/data/somewhere/deep/in/runs/celeba"],
    ["parameters_of_learning", "Pearson r", "0.876", "0.800 to 0.900", "", "runs/b"],
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_tables_fit_the_columns_and_cut_no_word(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    show_table("Scores", COLUMNS, ROWS, spare=["base rate"])
    told = capsys.readouterr()
    assert max(map(len, told.out.splitlines())) <= width
    words = set(re.split(r"[\s┃│]+", told.out))
    assert {"attribute", "parameters_of_learning", "expression"} <= words
    shown = [name for name in COLUMNS if name not in told.err]
    for place, name in enumerate(COLUMNS[:-1]):
        if name in shown:
            assert set(name.split()) | {word for row in ROWS for word in row[place].split()} <= words
    assert ("Not shown, as a line has" in told.err) == (len(shown) < len(COLUMNS))
    assert "base rate" not in shown or len(shown) == len(COLUMNS)


def test_a_long_path_is_shortened_before_a_column_goes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    show_table("Scores", COLUMNS, ROWS)
    told = capsys.readouterr()
    assert "…" in told.out
    assert "runs/celeba" in told.out
    assert told.err == ""


def test_an_endless_name_takes_no_other_column_away(capsys, monkeypatch):
    """A public table of labels has a column whose header is a row of numbers, 5,000 characters."""
    monkeypatch.setenv("COLUMNS", "80")
    show_table("Scores", COLUMNS[:4], [ROWS[1][:4], ["X5.o.Clock.Shadow." * 300, "Pearson r", "0.5", "0.1 to 0.9"]])
    told = capsys.readouterr()
    assert {"0.876", "0.5", "parameters_of_learning"} <= set(told.out.split())
    assert told.err == ""
    assert len(told.out.splitlines()) < 10


def test_a_pipe_has_room_for_whole_names(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table("Scores", COLUMNS, ROWS)
    assert "/data/somewhere/deep/in/runs/celeba" in capsys.readouterr().out


def test_a_title_may_be_wider_than_its_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show_table("reconstructions and the realism of edits", ["images", "SSIM"], [["a", "1.0"]])
    assert capsys.readouterr().out.startswith("reconstructions and the realism of edits\n")
