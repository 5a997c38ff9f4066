"""Progress in a log: lines now and then, the last of them once."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from diticli.commands import reporting
from diticli.commands.bars import RichReporter
from diticli.commands.failure import explain_interrupt, keeps
from diticli.commands.reporting import LineReporter


@pytest.fixture
def clock(monkeypatch):
    """Seconds, set by hand."""
    now = [100.0]
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def reporter():
    return LineReporter(io.StringIO())


def lines(reporter):
    return reporter.stream.getvalue().splitlines()


def test_the_last_line_comes_once(reporter, clock):
    reporter.start("Encoding", 20)
    for _ in range(2):
        clock[0] += 20
        reporter.advance(10)
    reporter.finish()
    reporter.finish()
    assert lines(reporter) == [
        "Encoding: 10/20 images, 2.0 s/image, 0:20 left",
        "Encoding: 20/20 images, 2.0 s/image in 0:40",
    ]


def test_what_came_after_the_last_line_is_told(reporter, clock):
    reporter.start("Training", 20)
    clock[0] += 20
    reporter.advance(10, loss=0.5)
    reporter.advance(10, loss=0.25)
    reporter.start("Encoding", 20)
    clock[0] += 0.5
    reporter.advance(20)
    reporter.finish()
    assert lines(reporter) == [
        "Training: 10/20 images, 2.0 s/image  loss 0.5, 0:20 left",
        "Training: 20/20 images, 1/s  loss 0.25 in 0:20",
    ]


def test_an_equal_task_begins_anew(reporter, clock):
    for _ in range(2):
        reporter.start("Encoding", 8)
        clock[0] += 20
        reporter.advance(8)
        reporter.finish()
    assert lines(reporter) == ["Encoding: 8/8 images, 2.5 s/image in 0:20"] * 2


@pytest.mark.parametrize(
    ("rate", "unit", "said"),
    [
        (1234, "images", "1,234/s"),
        (1, "steps", "1/s"),
        (0.5, "images", "2.0 s/image"),
        (0.02, "factors", "50 s/factor"),
    ],
)
def test_below_one_a_second_the_seconds_a_unit_are_said(rate, unit, said):
    assert reporting.rate_text(rate, unit) == said


def test_a_bar_on_80_columns_names_the_last_part_of_a_path_and_ends_before_the_last_word(capsys):
    keeps()  # whatever a command run before in this process keeps
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    bar = RichReporter(console)
    bar.start("Reading /home/ann/data/sets/celeba/photos", 100)
    assert explain_interrupt(KeyboardInterrupt()) == 130
    shown = console.file.getvalue()
    assert "Reading photos" in shown
    assert "/home" not in shown
    bar.finish()
    assert console.file.getvalue() == shown, "nothing is drawn after the message"
    assert capsys.readouterr().err == "\nStopped.\n"


@pytest.mark.parametrize(
    ("title", "fields", "words"),
    [
        ("Reading /tmp/set/photos", {}, ("Reading /tmp/set/photos", "0:00:00 left")),
        ("Stage features", {"loss": 0.0255}, ("Stage features", "loss 0.0255 0:00:00 left")),
        ("Stage base", {"loss": 0.0255, "ssl_loss": 2.5}, ("loss 0.0255  ssl_loss 2.5", "left")),
    ],
)
def test_a_bar_gives_way_to_the_words_beside_it(title, fields, words):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    bar = RichReporter(console)
    bar.start(title, 3072)
    for _ in range(3):
        time.sleep(0.01)
        bar.advance(300, **fields)
    assert bar._bar is not None
    bar._bar.refresh()
    drawn = [line for line in console.file.getvalue().splitlines() if "900/3072" in line]
    bar.finish()
    assert all(word in drawn[-1] for word in (*words, "images/s"))


def test_going_on_is_promised_where_there_is_something_to_go_on_from(tmp_path, capsys):
    kept, nothing = (
        "Run the same command again to go on.",
        "Nothing is kept yet: the same command begins from the start.",
    )
    folder, file = tmp_path / "kept", tmp_path / "feats.npy.partial.json"
    folder.mkdir()
    (folder / ".lock").touch()
    keeps(folder, file)
    try:
        for made, said in ((None, nothing), (folder / "a", kept), (file, kept)):
            if made:
                made.touch()
            assert explain_interrupt(KeyboardInterrupt("Stopped in stage base.")) == 130
            assert capsys.readouterr().err == f"\nStopped in stage base.\n{said}\n"
            if made:
                made.unlink()
    finally:
        keeps()
