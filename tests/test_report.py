import base64
import io
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from diticli.errors import DataError
from diticli.pictures.report import GLOSSARY, Section, write_report

VOID = {"meta", "img", "link", "br", "hr"}


class Checker(HTMLParser):
    """Insists on balanced tags; collects text, attributes and the rows of tables."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.seen, self.text = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.seen)


HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}{% raw %}.png"


def render(tmp_path, *sections, title="A report"):
    path = write_report(tmp_path / "deep" / "report.html", title=title, sections=sections)
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return page, Checker(page)


def png(size=(3, 2)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, format="PNG")
    return buffer.getvalue()


def test_report_is_balanced_and_self_contained(tmp_path):
    (tmp_path / "x.png").write_bytes(png())
    page, seen = render(
        tmp_path,
        Section(title="One", text="first\n\nsecond", picture=Image.new("RGB", (5, 4)), caption="five by four"),
        Section(title="Two", picture=png(), code="diti edit a b"),
        Section(
            title="Three",
            picture=tmp_path / "x.png",
            table=(["name", "score"], [["hue", 0.98765], ["x", None]]),
        ),
    )
    assert seen.count("section") == 3
    assert seen.count("p") == 2
    assert seen.count("script") == seen.count("link") == 0
    assert "http" not in page
    assert "url(" not in page
    images = [attributes for tag, attributes in seen.seen if tag == "img"]
    assert [(a["width"], a["height"], a["alt"]) for a in images] == [
        ("5", "4", "five by four"),
        ("3", "2", "Two"),
        ("3", "2", "Three"),
    ]
    for attributes in images:
        kind, data = attributes["src"].split(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert "0.988" in seen.text
    assert "–" in seen.text
    assert "prefers-color-scheme: dark" in page


def test_every_page_explains_its_words_as_the_docs_do(tmp_path):
    """The glossary stands on the page itself, which may lie anywhere."""
    page, _ = render(tmp_path, Section(title="One"))
    told = Checker(page[page.index("<dl>") : page.index("</dl>") + 5])
    root = Path(__file__).parents[1]
    written = re.findall(r"\*\*(.+?)\*\*( \(.+?\))?: (.+?)(?=\n\n|\Z)", (root / "docs/glossary.md").read_text(), re.S)
    assert len(written) == told.count("dt") == 11
    assert set(GLOSSARY.values()) <= {attributes.get("id") for tag, attributes in told.seen if tag == "dt"}
    plain = " ".join(f"{word}{sign} {re.sub('[*`]', '', meaning)}" for word, sign, meaning in written)
    assert " ".join(" ".join(told.text).split()) == " ".join(plain.split())


def test_templates_are_part_of_the_package():
    root = Path(__file__).parents[1]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["diticli"]
    packaged = {path for pattern in patterns for path in (root / "diticli").glob(pattern)}
    assert packaged >= set((root / "diticli" / "pictures" / "templates").iterdir())
    assert any(path.suffix == ".j2" for path in packaged)


def test_hostile_names_stay_text(tmp_path):
    page, seen = render(
        tmp_path,
        Section(
            title=HOSTILE,
            text=HOSTILE,
            picture=png(),
            caption=HOSTILE,
            table=([HOSTILE], [[HOSTILE]]),
            code=f"diti edit '{HOSTILE}'",
        ),
        title=HOSTILE,
    )
    assert seen.count("script") == 0
    assert seen.count("img") == 1
    assert "<script" not in page
    assert "onerror" not in {name for _, attributes in seen.seen for name in attributes}
    assert seen.text.count(HOSTILE) == 7  # title, h1, h2, p, figcaption, th, td; code holds it within more
    alternative = next(attributes["alt"] for tag, attributes in seen.seen if tag == "img")
    assert alternative == HOSTILE


def test_undecodable_names_can_be_written(tmp_path):
    _, seen = render(tmp_path, Section(title="bad\udcff\x00name"))
    assert "bad??name" in seen.text


def test_numbers_stand_to_the_right_under_their_heading(tmp_path):
    _, seen = render(tmp_path, Section(title="t", table=(["name", "n", "r"], [["a", 3, None], ["b", 4, 0.5]])))
    cells = [(tag, attributes.get("class")) for tag, attributes in seen.seen if tag in ("th", "td")]
    assert cells[:3] == [("th", None), ("th", "number"), ("th", "number")]
    assert cells[3:6] == [("td", None), ("td", "number"), ("td", "number")]
    render(tmp_path, Section(title="empty", table=(["name"], [])))
    render(tmp_path)


def test_damaged_picture_and_unwritable_place_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="picture"):
        write_report(tmp_path / "r.html", title="t", sections=[Section(title="s", picture=b"not a png")])
    with pytest.raises(DataError, match=r"gone\.png"):
        write_report(tmp_path / "r.html", title="t", sections=[Section(title="s", picture=tmp_path / "gone.png")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError) as caught:
        write_report(tmp_path / "file" / "r.html", title="t", sections=[])
    assert caught.value.remedy
