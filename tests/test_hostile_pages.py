"""Pages that commands write and the studio's own, of folders, attributes and pictures with hostile names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_budget import Clock
from test_report import Checker
from test_studio import BROWSER, STEPS, WAIT, browser_page, needs_browser, serving
from test_training import tiny
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.data.faces import write_faces
from diticli.demo import run_demo
from diticli.evaluation import chunk_ablation
from diticli.models import hub, reconstruction_gap
from diticli.reading import printable

# A file's name holds no "/"; attributes of a table may.
FOLDER = "a <b>&\"'`{{7*7}}\u202egnp\u2066\x1b[31m\u061c<img src=x onerror=hit=1>"
ATTRIBUTE = FOLDER.replace("\x1b", "") + "</td></script><script>hit=1</script>"
PICTURE = "<i onclick=hit=1>\u202e&quot;"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "section", "h2", "p", "figure", "img"),
    *("figcaption", "div", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "details", "summary"),
    *("dl", "dt", "dd", "footer", "script", "a"),
}
ATTRIBUTES = {"lang", "charset", "name", "content", "src", "width", "height", "alt", "class", "id", "href", "open"}


def check_page(path: Path, *names: str) -> None:
    """The page holds these names as text, and no tag, attribute or character that they brought."""
    page = path.read_text(encoding="utf-8")
    seen = Checker(page)
    assert {tag for tag, _ in seen.seen} <= TAGS
    assert {name for _, attributes in seen.seen for name in attributes} <= ATTRIBUTES
    assert all(a["src"].startswith("data:image/png;base64,") for tag, a in seen.seen if tag == "img")
    places = {attributes["id"] for _, attributes in seen.seen if "id" in attributes}
    assert {attributes["href"] for tag, attributes in seen.seen if tag == "a"} <= {f"#{place}" for place in places}
    assert seen.count("script") <= 1
    assert printable(page) == page
    text = " ".join(seen.text)
    for name in names:
        assert printable(name) in text
    if BROWSER is None:
        return
    with browser_page() as opened:
        opened.goto(path.as_uri())
        assert opened.evaluate("typeof hit") == "undefined"
        assert opened.evaluate("document.querySelectorAll('b, i, img:not([src^=\"data:\"])').length") == 0
        assert printable(names[0]) in opened.inner_text("body")
        assert opened.called_outside(path.as_uri()) == []


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pipeline: Callable[..., Any]) -> Path:
    """A folder of a hostile name with a model and labelled pictures of hostile names, as the working folder."""
    folder = tmp_path / FOLDER
    make_pipeline().save_pretrained(folder / FOLDER)
    data = folder / "data" / FOLDER
    labels = write_faces(data, 240, size=16)
    with labels.open(newline="") as file:
        header, *rows = csv.reader(file)
    names = [ATTRIBUTE, *header[2:4]]
    for row in rows[:2]:
        (data / row[0]).rename(data / f"{PICTURE}{row[0]}")
        row[0] = f"{PICTURE}{row[0]}"
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", *names], *([row[0], *row[1:4]] for row in rows)])
    monkeypatch.chdir(folder)
    monkeypatch.setattr(reconstruction_gap, "GRID", 8)
    monkeypatch.setattr(chunk_ablation, "POINTS", 4)
    return folder


def done(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert printable(result.output) == result.output


def test_the_page_of_evaluate(here: Path) -> None:
    data = f"data/{FOLDER}"
    options = ["--pairs", "4", "--learn", "200", "--epochs", "1", "--steps", "2", "--full", "--chunk-groups", "2"]
    options += ["--composition", "1", "--realism", "--force", "--device", "cpu", "-o", "out"]
    done(["evaluate", f"./{FOLDER}", "--data", data, "--labels", f"{data}/labels.csv", *options])
    check_page(here / "out" / "report.html", FOLDER, ATTRIBUTE)
    written = {path.suffix for path in (here / "out").rglob("*") if path.is_file()}
    assert written <= {".html", ".json", ".png", ".safetensors"}


def test_the_page_of_compare(here: Path) -> None:
    data = f"data/{FOLDER}"
    options = ["--baselines", "pca", "--no-metrics", "--steps", "2", "--device", "cpu", "-o", "out"]
    done(["compare", f"./{FOLDER}", "--data", data, "--labels", f"{data}/labels.csv", *options])
    check_page(here / "out" / "report.html", ATTRIBUTE, FOLDER)


def test_the_page_of_the_demo(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SHIPPED_FOLDER", here / "none")
    out = here / f"{FOLDER} run"
    result = run_demo(tiny(), out, full=True, held_out=200, steps=2, clock=Clock())
    check_page(result.report, "What diti does: a demonstration")
    assert FOLDER not in result.report.read_text()


@needs_browser
def test_the_page_of_the_studio(here: Path) -> None:
    from diticli.probing.directions import Directions
    from diticli.probing.linear_probe import LinearProbe
    from diticli.studio import parts, serve
    from diticli.studio.workbench import Workbench

    page_module = serve.import_page()
    bench = serve.open_bench(f"./{FOLDER}", "cpu", None)
    layout = bench.model.chunks
    rng = np.random.default_rng(0)
    probe = LinearProbe(
        weights=rng.normal(size=(1, layout.latent_dim)).astype(np.float32),
        bias=np.zeros(1, np.float32),
        mean=np.zeros(layout.latent_dim, np.float32),
        std=np.ones(layout.latent_dim, np.float32),
        names=(ATTRIBUTE,),
        kinds=("binary",),
        classes=("",),
        model_hash=bench.model.model_hash,
    )
    directions = Directions(full=probe, masked=None, chosen={}, patterns=probe.weights, layout=layout)
    bench = Workbench(bench.model, settings=replace(STEPS, invert_steps=2, decode_steps=2), directions=directions)
    np.save("feats.npy", rng.normal(size=(8, layout.latent_dim)).astype(np.float32))
    names = sorted(path.name for path in (here / "data" / FOLDER).glob("*.png"))
    Path("feats.json").write_text(json.dumps({"files": names[-8:]}))
    atlas = {"groups": [[0, 1], [2, 3]], "shares": {ATTRIBUTE: [{"value": 0.9}, {"value": 0.8}]}}
    Path("evaluation.json").write_text(json.dumps({"models": [{"atlas": atlas}]}))
    options = serve.page_options(page_module, bench, f"./{FOLDER}", None, Path("feats.npy"), Path("evaluation.json"))
    options = replace(options, scores={ATTRIBUTE: 0.9}, probe=FOLDER)
    upload = here / "data" / FOLDER / next(name for name in names if name.startswith(PICTURE))
    bad = here / f"{PICTURE}.png"
    bad.write_bytes(b"no picture")
    shown: list[str] = []
    with serving(page_module, bench, options) as address, browser_page() as page:
        page.on("dialog", lambda dialog: shown.append(dialog.message))
        page.goto(address)
        command = "(document.querySelector('#command textarea')?.value ?? '')"
        page.wait_for_function(f"{command}.includes('diti edit')", timeout=WAIT)
        page.set_input_files("#upload-a input[type=file]", str(upload))
        page.wait_for_function(f"{command}.includes('onclick')", timeout=WAIT)
        page.set_input_files("#upload-b input[type=file]", str(bad))
        page.get_by_text("cannot be read: not an image.").first.wait_for(timeout=WAIT)
        page.get_by_role("tab", name="Attributes").click()
        page.locator("#slider-0 input[type=number]").fill("0.5")
        page.keyboard.press("Tab")
        moved = "document.querySelector('#attribute-command textarea').value"
        page.wait_for_function(f"{moved}.includes('--amount=0.50')", timeout=WAIT)
        page.get_by_text("Read again from the edited picture").wait_for(timeout=WAIT)
        page.get_by_role("tab", name="Look inside").click()
        page.wait_for_selector("#inside-bars img", timeout=WAIT)
        page.get_by_text(printable(names[-1])).first.wait_for(timeout=WAIT)
        assert page.evaluate("typeof hit") == "undefined"
        assert page.evaluate("document.querySelectorAll('[onclick*=hit], [onerror*=hit], img[src=x]').length") == 0
        assert parts.named(ATTRIBUTE)[:20] in page.inner_text("body")
        assert not set(page.inner_text("body")) & set("\u202e\u2066\u061c\x1b")
        assert page.called_outside(address) == []
    assert shown == []
