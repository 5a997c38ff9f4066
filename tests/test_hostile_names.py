"""Hostile names and pictures: no path climbs out, no picture fills the memory, no name speaks to page or terminal."""

import contextlib
import csv
import io
import json
import os
import re
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile_files import BOMBS, png_bytes, tar_bytes
from PIL import Image
from rich.console import Console

from diticli.chunks import ChunkLayout
from diticli.commands.bars import RichReporter
from diticli.commands.console import say, show_table
from diticli.commands.failure import explain
from diticli.commands.plan_view import show_plan
from diticli.commands.reporting import LineReporter
from diticli.data import decode, decode_budget
from diticli.data.decode import decode_bytes, decode_image, image_size, is_image, picture_size
from diticli.data.decode_budget import DecodeBudget
from diticli.data.images import open_images
from diticli.data.labels import read_labels
from diticli.editing.many_files import ManyOptions, plan_pairs, write_failed
from diticli.editing.table import PairRow, read_pairs
from diticli.errors import ConfigError, DataError, DiTiError, UnreadableImageError
from diticli.features.read import read_features
from diticli.pictures import report
from diticli.pictures.animation import save_animation
from diticli.pictures.grids import captioned_strip, save_png
from diticli.pictures.heatmaps import chunk_heatmap
from diticli.pictures.report import Section, write_report
from diticli.reading import printable
from diticli.training.plan import RunPlan

# paths


def test_no_name_in_a_tar_leaves_it(tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(png_bytes())
    names = ["../up.png", "/etc/absolute.png", "a/../../b.png", "..\\win.png", "C:\\evil\\drive.png", "x\0/../nul.png"]
    data = tar_bytes(
        {name: png_bytes() for name in names} | {"link.png/in.png": png_bytes(), "good.png\0.txt": png_bytes()},
        links={"link.png": str(outside), "dir": "/etc", "dir2": "../.."},
        pax={"path": "deep/../../pax.png\0.txt"},
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(data)
    source = open_images(str(tmp_path / "in"), 8)
    found = [source.file_name(i) for i in range(len(source))]
    assert found == [
        *("deep/pax.png", "etc/absolute.png", "a/b.png", "win.png", "C:/evil/drive.png", "link.png/in.png", "good.png")
    ]
    assert all(source.load(i).shape == (8, 8, 3) for i in range(len(source)))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in", "outside.png"]


@pytest.mark.parametrize("size", ["-5", "-600", str(10**30), str(2**63), "1e5", "zero"])
def test_sizes_that_a_tar_only_claims(tmp_path, size):
    (tmp_path / "a.tar").write_bytes(tar_bytes({"a.png": png_bytes(), "b.png": png_bytes()}, pax={"size": size}))
    try:
        source = open_images(str(tmp_path / "a.tar"), 8)
    except DataError:
        return
    for index in range(len(source)):
        with contextlib.suppress(UnreadableImageError):
            assert source.load(index).shape == (8, 8, 3)


def test_no_key_of_an_lmdb_becomes_a_name(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    keys = [b"../../evil-00000", b"/etc/passwd", b"8-../00000", b"8-00000\0/../x", b"None-0000000/../../x"]
    with lmdb.open(str(tmp_path / "d"), map_size=2**20) as database, database.begin(write=True) as transaction:
        for key in [*keys, b"8-00000", b"8-00001"]:
            transaction.put(key, png_bytes())
        transaction.put(b"length", b"2")
    source = open_images(str(tmp_path / "d"), 8)
    assert [source.file_name(i) for i in range(len(source))] == ["00000.png", "00001.png"]
    assert source.load(1).shape == (8, 8, 3)


@pytest.mark.parametrize("flags", [{}, {"dupsort": True}, {"integerkey": True}])
@pytest.mark.parametrize("name", [b"8-00001", b"length", b"a"])
def test_a_database_within_an_lmdb_is_no_picture(tmp_path, name, flags):
    """Whatever its flags, and nothing is written by looking at it."""
    lmdb = pytest.importorskip("lmdb")
    content = {b"8-00000": png_bytes(), b"8-00001": png_bytes(), b"length": b"2"}
    with lmdb.open(str(tmp_path / "d"), map_size=2**20, max_dbs=1) as database:
        with database.begin(write=True) as transaction:
            for key in content.keys() - {name}:
                transaction.put(key, content[key])
        database.open_db(name, **flags)
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "d").iterdir()}
    if name == b"length":
        with pytest.raises(DataError, match="does not say how many images"):
            open_images(str(tmp_path / "d"), 8)
    else:
        source = open_images(str(tmp_path / "d"), 8)
        assert source.load(0).shape == (8, 8, 3)
        if name == b"8-00001":
            with pytest.raises(UnreadableImageError, match="not an image"):
                source.load(1)
    assert before == {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "d").iterdir()}


HOSTILE_NAMES = ["../../etc/passwd", "/etc/passwd", "..\\..\\x.png", "a\x1b[31m.png", "<script>.png", "x\0y.png"]


def test_names_in_metadata_and_labels_are_labels_never_opened(tmp_path):
    np.save(tmp_path / "feats.npy", np.zeros((len(HOSTILE_NAMES), 2), np.float32))
    (tmp_path / "feats.json").write_text(json.dumps({"files": HOSTILE_NAMES}))
    meta = read_features(tmp_path / "feats.npy").meta
    assert list(meta.files) == HOSTILE_NAMES
    records = [{"file_name": name, "age": i} for i, name in enumerate(HOSTILE_NAMES)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    table = read_labels(tmp_path / "metadata.jsonl")
    rows, _ = table.match(meta.files)
    assert len(rows) == len(HOSTILE_NAMES)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../up",
            "/abs",
            "a/b",
            "a\\b",
            "..",
            ".hidden",
            "nul\0",
            "new\nline",
            "-rf",
            "del\x7f",
            "c1\x9b",
            "l\u2028s",
        ),
        *("\u202egnp.exe", "a\u2066b", "\u200fx", "\ud800", "x" * 201),
    ],
)
def test_a_pairs_name_stays_in_the_output_folder(tmp_path, name):
    record = {"a": "faces:1", "b": "faces:2", "name": name}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="is no plain file name"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_names_of_other_languages_are_plain(tmp_path):
    names = ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u4e2d\u6587", "\u00e9 a", "\U0001f600"]
    lines = [json.dumps({"a": "faces:1", "b": "faces:2", "name": name}) for name in names]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    assert [row.name for row in read_pairs(tmp_path / "pairs.jsonl")] == names


def test_a_list_of_failures_computes_nothing_and_is_a_table_again(tmp_path):
    text = "=1+1"
    row = PairRow(a="faces:1", b="@b.png", chunks="+1", alphas="-1:2:3", name=text)
    write_failed([(row, "=HYPERLINK(1)"), (replace(row, name="'plain"), "x")], tmp_path)
    with (tmp_path / "failed.csv").open(newline="") as file:
        _, *lines = csv.reader(file)
    assert all(cell[:1] not in {*"=+-@"} for cells in lines for cell in cells)
    again = read_pairs(tmp_path / "failed.csv")
    assert [(one.name, one.chunks, one.alphas) for one in again] == [(n, "+1", "-1:2:3") for n in (text, "'plain")]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", [*BOMBS, "pipe"])
def test_what_lies_where_a_picture_goes_stops_no_table(tmp_path, kind):
    place = tmp_path / "x.png"
    os.mkfifo(place) if kind == "pipe" else place.write_bytes(BOMBS[kind])
    rows = [PairRow(a="faces:1", b="faces:2", name="x")]
    plan = plan_pairs(rows, tmp_path, ChunkLayout.uniform(chunks=4, latent_dim=8), "hash", ManyOptions())
    assert not plan.todo
    ((row, reason),) = plan.failed
    assert (row.name, "diti did not make" in reason) == ("x", True)


# pictures


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_their_head(tmp_path, monkeypatch, kind):
    path = tmp_path / "bomb.png"
    path.write_bytes(BOMBS[kind])
    (tmp_path / "a.tar").write_bytes(tar_bytes({"bomb.png": BOMBS[kind]}))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded a bomb"))
    tracemalloc.start()
    try:
        for decoding in (
            lambda: decode_image(path, 16),
            lambda: decode_bytes(BOMBS[kind], "bomb", 16),
            lambda: open_images(str(tmp_path / "a.tar"), 16).load(0),
        ):
            # Pillow before 13 refuses so large a canvas itself, before it says its size.
            with pytest.raises(UnreadableImageError, match=r"pixels|could not create decoder object") as caught:
                decoding()
            assert caught.value.remedy
        size = picture_size(path)
        assert size is None or min(size) > 16_000
        assert not is_image(path) or image_size(BOMBS[kind])
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_files_larger_than_any_picture_are_not_opened(tmp_path, monkeypatch):
    """Some decoders read the whole file first."""
    path = tmp_path / "sparse.webp"
    with path.open("wb") as file:
        file.write(BOMBS["webp"])
        file.truncate(decode.MAX_BYTES + 1)
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("opened it"))
    with pytest.raises(UnreadableImageError, match="bytes are more than"):
        decode_image(path, 16)
    assert not is_image(path)


def test_large_pictures_wait_for_one_another(monkeypatch):
    """Eight threads that meet eight large pictures hold the budget's pixels at most."""
    monkeypatch.setattr(decode_budget, "SMALL", 10)
    budget, together, most = DecodeBudget(100), [], []
    started = threading.Barrier(8)

    def work(pixels):
        started.wait()
        with budget.reserve(pixels):
            together.append(pixels)
            most.append(sum(together))
            threading.Event().wait(0.01)
            together.remove(pixels)

    threads = [threading.Thread(target=work, args=(n,)) for n in (40, 40, 40, 40, 60, 60, 150, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 8
    assert max(total for total in most if total != 150) <= 100, "only what is larger than the budget goes alone"
    with budget.reserve(100), budget.reserve(10):
        pass  # small ones never wait


# reports


ODD_TEXTS = [
    *HOSTILE_NAMES,
    "</code></pre><script>",
    '"onload="x',
    "a\u202egnp.exe",
    "\u2066b\x9b31m",
    "\ud800",
    "x" * 10**6,
]


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_reports_escape_names(tmp_path, name):
    section = Section(title=name, text=name, caption=name, picture=png_bytes(), table=([name], [[name]]), code=name)
    page = write_report(tmp_path / "report.html", title=name, sections=[section]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert '"onload' not in page
    assert "\0" not in page
    assert not set(page) & {"\x1b", "\x9b", "\u202e", "\u2066", "\ud800"}
    assert max(map(len, page.split("<p>")[0].split())) < 6_000, "of a very long name a part is shown"
    assert page.count("<section>") == page.count("</section>") == page.count("</pre>") == 1


@pytest.mark.parametrize("kind", ["png", "gif", "tiff"])
def test_a_report_takes_no_bomb_for_a_picture(tmp_path, kind):
    with pytest.raises(DiTiError, match="Cannot put"):
        write_report(tmp_path / "r.html", title="t", sections=[Section(title="s", picture=BOMBS[kind])])


# the terminal

MARKUP = "[bold red]a[/bold red] [/nothing] [link=http://x.y]b[/link] :warning: [3]"
ESCAPES = "\x1b]0;title\x07\x1b[31mred\x1b[2J\r\x08\x9b31m\u202egnp\udcff\x7f"


def assert_tame(shown):
    assert not set(shown) & set("\x1b\x07\r\x08\x9b\u202e\udcff\x7f")


def test_tables_show_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show_table(MARKUP, [MARKUP, "n"], [[MARKUP, "1"], [ESCAPES, "2"]])
    shown = capsys.readouterr().out
    assert shown.count(MARKUP) == 3
    assert_tame(shown)
    assert "?[31mred?[2J???31m?gnp??" in shown


def test_lines_and_errors_show_names_as_they_are(capsys):
    say(f"Wrote {MARKUP} {ESCAPES}")
    assert explain(DataError(f"Cannot read {MARKUP} {ESCAPES}.", remedy=f"Rename {MARKUP} {ESCAPES}.")) == 65
    shown = capsys.readouterr().err
    assert shown.count(MARKUP) == 3
    assert_tame(shown)


def test_a_plan_shows_names_as_they_are(capsys):
    plan = RunPlan(
        preset="faces32",
        device="cpu",
        precision="fp32",
        compile=False,
        data=f"{MARKUP} {ESCAPES}",
        data_images=8,
        resolution=32,
        chunks=2,
        latent_dim=4,
        ssl="none",
        stages=(),
        peak_memory_mb=1.0,
    )
    show_plan(plan, as_json=False)
    shown = capsys.readouterr().out
    assert shown.count(MARKUP) == 1
    assert_tame(shown)


@pytest.mark.parametrize("kind", [RichReporter, LineReporter])
def test_progress_shows_names_as_they_are(kind, monkeypatch):
    monkeypatch.setattr("diticli.commands.reporting.LINE_SECONDS", 0.0)
    stream = io.StringIO()
    console = Console(file=stream, width=400, emoji=False, highlight=False, no_color=True)
    reporter = kind(console if kind is RichReporter else stream)
    reporter.start(f"Reading {MARKUP} {ESCAPES}", 2)
    reporter.advance(pair=f"{MARKUP} {ESCAPES}")
    reporter.note(f"{MARKUP} {ESCAPES}")
    reporter.warn(f"{MARKUP} {ESCAPES}")
    reporter.advance()
    reporter.finish()
    shown = stream.getvalue()
    assert shown.count(MARKUP) >= 4
    assert_tame(shown.replace("\r", ""))


def test_pages_are_made_in_one_place_which_escapes():
    package = Path(report.__file__).parents[1]
    sources = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [name for name, text in sources.items() if "jinja2.Environment(" in text] == ["pictures/report.py"]
    assert "autoescape=True" in sources["pictures/report.py"]
    assert not [name for name, text in sources.items() if re.search(r"<(html|!doctype|table|script)", text, re.I)]
    for template in (package / "pictures" / "templates").iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", template.read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_pictures_hold_and_show_harmless_text(tmp_path, text):
    tile = np.zeros((16, 16, 3), np.uint8)
    strip = captioned_strip([[tile]], row_captions=[text], column_captions=[text], cell_captions=[[text]], title=text)
    assert strip.width * strip.height < 3e6
    facts = {"diti:command": text[:5000], "diti:model": text[:5000]}
    with Image.open(save_png(strip, tmp_path / "a.png", facts)) as picture:
        shown = picture.text
    with Image.open(save_animation([strip, strip], tmp_path / "a.gif", facts)) as picture:
        shown = {**shown, "comment": picture.info["comment"].decode()}
    assert shown["diti:model"] == printable(text[:5000])
    assert not set("".join(shown.values())) & {"\x1b", "\x9b", "\u202e", "\u2066", "\0"}
    layout = ChunkLayout.uniform(chunks=2, latent_dim=4)
    chart = chunk_heatmap(tmp_path / "b.png", np.zeros((1, 2)), rows=[text], layout=layout, title=text, note=text)
    with Image.open(chart) as picture:
        assert picture.width * picture.height < 3e6
