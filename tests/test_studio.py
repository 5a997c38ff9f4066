"""`diti studio`: the same pixels as `diti edit`, a page that a browser can use, and nobody else who is called."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import threading
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.editing.attribute import edit_attribute
from diticli.editing.inputs import read_source
from diticli.editing.pair import edit_pair
from diticli.editing.settings import EditSettings
from diticli.errors import ConfigError, DataError, DiTiError
from diticli.models.load import load_model
from diticli.studio import serve
from diticli.studio.space import export_space
from diticli.studio.workbench import PREVIEW_STEPS, SupersededError, Workbench

STEPS = EditSettings(invert_steps=8, decode_steps=8)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("shipped", "cpu")


@pytest.fixture(scope="module")
def directions(model, tmp_path_factory) -> Any:
    """Of two attributes, at random: here only the arithmetic counts."""
    from diticli.probing.directions import Directions
    from diticli.probing.linear_probe import LinearProbe

    d = model.chunks.latent_dim
    rng = np.random.default_rng(0)
    probe = LinearProbe(
        weights=rng.normal(size=(2, d)).astype(np.float32),
        bias=np.zeros(2, np.float32),
        mean=np.zeros(d, np.float32),
        std=np.ones(d, np.float32),
        names=("hat", "smile"),
        kinds=("binary", "number"),
        classes=("", ""),
        model_hash=model.model_hash,
    )
    return Directions(full=probe, patterns=probe.weights, layout=model.chunks)


@pytest.fixture
def bench(model, directions) -> Workbench:
    return Workbench(model, settings=STEPS, directions=directions, kept=2)


def faces(model, *sources: str) -> list[Image.Image]:
    return [read_source(source, model.resolution, model.crop) for source in sources]


@pytest.mark.parametrize("noise", ["keep", "slerp", "swap"])
def test_an_exchange_gives_the_pixels_of_diti_edit(model, bench, noise):
    chunks = model.chunks.parse("10-20")
    settings = replace(STEPS, noise=noise)
    expected = edit_pair(model, *faces(model, "faces:3", "faces:8"), [chunks], [0.5, 1.0], settings=settings)
    a, b = bench.picture("faces:3"), bench.picture("faces:8")
    assert np.array_equal(a.original, expected.originals[0])
    assert np.abs(b.reconstruction.astype(int) - expected.reconstructions[1]).max() <= 1
    assert a.psnr == pytest.approx(expected.psnr[0], abs=0.01)
    shown = dict(zip(("a", "b"), bench.exchange(a, b, chunks, [0.5, 1.0], noise), strict=True))
    for edit, pixels in expected.edits.items():
        difference = np.abs(pixels.astype(int) - shown[edit.side][[0.5, 1.0].index(edit.alpha)])
        assert difference.max() <= 1  # other batches add up in another order
        assert (difference > 0).mean() < 0.01


def test_a_move_gives_the_pixels_of_diti_edit(model, bench, directions):
    images = faces(model, "faces:3")
    expected = edit_attribute(model, images, directions, ["hat"], [0.5], chunk_sets=[(3, 4)], settings=STEPS)
    moved = bench.move(bench.picture("faces:3"), {"hat": 0.5, "smile": 0.0}, (3, 4))
    (pixels,) = expected.edits.values()
    assert np.abs(pixels.astype(int) - moved).max() <= 1
    picture = bench.picture("faces:3")
    assert bench.move(picture, {"hat": 0.0}) is picture.reconstruction


def test_inversions_are_kept_up_to_a_bound(bench, monkeypatch):
    first = bench.picture("faces:3")
    assert bench.picture("faces:3") is first
    bench.picture("faces:4")
    bench.picture("faces:5")
    assert bench.picture("faces:3") is not first  # two are kept


def test_a_newer_change_ends_older_work(bench):
    a, b = bench.picture("faces:3"), bench.picture("faces:8")
    asked = []

    def stale() -> bool:
        asked.append(None)
        return len(asked) == 2

    with pytest.raises(SupersededError):
        bench.exchange(a, b, (1, 2), [1.0], stale=stale)
    assert len(asked) == 2  # in the middle, not at the end
    assert bench.preview.decode_steps == PREVIEW_STEPS


def test_features_by_chunk(model, bench):
    picture = bench.picture("faces:3")
    layout = model.chunks
    z = picture.latents.z[0]
    expected = [float(z[layout.dims_of(c)].double().square().mean().sqrt()) for c in range(layout.chunks)]
    np.testing.assert_allclose(bench.by_chunk(picture), expected, rtol=1e-6)


def test_neighbours_are_the_nearest_by_the_chosen_dims(tmp_path):
    from diticli.studio.neighbours import Neighbours

    values = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    np.save(tmp_path / "f.npy", values)
    near = Neighbours(tmp_path / "f.npy", 6).find(torch.from_numpy(values[7]), np.array([0, 1, 4]))
    assert near[0] == ("7", 0.0)
    assert len(near) == 8
    far = np.sqrt(np.mean(np.square((values - values[7]) / values.std(0))[:, [0, 1, 4]], axis=1))
    assert [int(name) for name, _ in near] == np.argsort(far)[:8].tolist()
    with pytest.raises(DiTiError, match="the model has 5"):
        Neighbours(tmp_path / "f.npy", 5)


def test_only_loopback_is_private():
    assert all(map(serve.is_loopback, ("127.0.0.1", "127.3.2.1", "::1", "localhost")))
    assert not any(map(serve.is_loopback, ("0.0.0.0", "192.168.0.7", "::", "example.org")))
    assert serve.parse_auth("anna:a:b") == ("anna", "a:b")
    for wrong in ("anna", ":x", "anna:"):
        with pytest.raises(ConfigError, match="user and a password"):
            serve.parse_auth(wrong)


def test_swap_effects_are_read_or_refused(tmp_path):
    atlas = {"groups": [[0, 1], [2, 3]], "shares": {"hat": [{"value": 0.8}, {"value": 0.1}]}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"models": [{"atlas": atlas}]}))
    assert serve.read_effects(tmp_path) == ({"hat": [0.8, 0.1]}, [[0, 1], [2, 3]])
    assert serve.read_effects(None) == ({}, [])
    (tmp_path / "evaluation.json").write_text(json.dumps({"models": [{"atlas": atlas | {"groups": [[0]]}}]}))
    with pytest.raises(ConfigError, match="no swap effects"):
        serve.read_effects(tmp_path)


def test_a_space_is_written_once_and_only_of_models_others_can_see(tmp_path):
    written = export_space(tmp_path / "space", "shipped", "6.31.0")
    assert [path.name for path in written] == ["app.py", "requirements.txt", "README.md"]
    compile(written[0].read_text(), "app.py", "exec")
    header = re.match(r"---\n(.*?)\n---\n", written[2].read_text(), re.DOTALL)
    assert header
    assert "sdk: gradio\nsdk_version: 6.31.0\napp_file: app.py" in header[1]
    with pytest.raises(ConfigError, match="not empty"):
        export_space(tmp_path / "space", "shipped", "6.31.0")
    with pytest.raises(ConfigError, match="cannot see"):
        export_space(tmp_path / "other", str(tmp_path), "6.31.0")


def test_without_gradio_there_is_a_remedy(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["studio", "--no-browser"])
    assert result.exit_code == 2
    assert 'pip install "diticli[studio]"' in result.stderr


# ---------------------------------------------------------------- the page

EFFECTS = {"hat": [0.84, 0.0], "<b>odd|name</b>": [0.0, 0.5]}


@pytest.fixture(scope="module")
def page_module() -> Any:
    pytest.importorskip("gradio")
    return serve.import_page()


def options_of(page_module, model) -> Any:
    groups = [list(range(32)), list(range(32, 64))]
    return page_module.PageOptions(
        title="Model: <shipped>", model="shipped", effects=EFFECTS, groups=groups, scores={"hat": 0.9}, probe="probe"
    )


@pytest.fixture(scope="module")
def address(page_module, model, directions) -> Any:
    """A running page of four steps."""
    with serve.private_folder() as folder:
        bench = Workbench(model, settings=STEPS, directions=directions)
        page = page_module.build_page(bench, options_of(page_module, model))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        _, address = serve.launch(page, host="127.0.0.1", port=port, share=False, browser=False, auth=None, wait=False)
        yield address
        page.close()
    assert not folder.exists()


def test_commands_repeat_what_is_shown(page_module, bench, model):
    import shlex

    a, b = bench.picture("faces:3"), bench.picture("faces:8", name="-my photo.png")
    from diticli.studio import pair_tab

    line = pair_tab.pair_command(a, b, "10-20", [0.25, 1.0], "slerp", "shipped")
    assert shlex.split(line) == [
        *("diti", "edit", "faces:3", "./-my photo.png", "--chunks", "10-20", "--alphas", "0.25,1.00"),
        *("--noise", "slerp", "--model", "shipped"),
    ]


def test_older_changes_are_stale_in_whatever_order_they_arrive(page_module):
    from diticli.studio import parts

    changes = parts.Changes()
    changes.note("visitor", "pair", 2.0)
    changes.note("visitor", "pair", 1.0)  # sent before, arrived after
    assert changes.is_stale("visitor", "pair", 1.5)
    assert not changes.is_stale("visitor", "pair", 2.0)
    assert not changes.is_stale("visitor", "attribute", 1.5)
    changes.forget("visitor")
    assert not changes.is_stale("visitor", "pair", 1.5)


def test_words_open_no_files_of_this_machine(page_module, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    from diticli.studio import parts

    with pytest.raises(DataError, match="no built-in face"):
        parts.face_word(str(tmp_path / "secret.png"))


def test_names_are_escaped_in_the_bar(page_module, model):
    from diticli.studio import pair_tab

    bar = pair_tab.chunk_bar(model.chunks, "1-2", options_of(page_module, model))
    assert "<b>odd" not in bar.html_template + "".join(bar.props["cells"])
    assert "hat 0.84" in bar.props["cells"][0]
    assert len(bar.props["cells"]) == model.chunks.chunks


@pytest.mark.parametrize(
    "text", ["<b>x</b>", "[a](b)", "a|b\n# c", "$$x$$", "`x`", "a\u202eb\x1b[31m", "x" * 10**6, "\ud800"]
)
def test_names_are_plain_text_on_the_page(page_module, text):
    import html

    from diticli.studio import parts

    shown = parts.safe(text)
    assert not set(shown) & set("<>|[]$`*_\n\x1b\u202e\ud800")
    assert "#" not in shown.replace("&#", "")
    assert html.unescape(shown) == parts.named(text)
    assert len(parts.named(text)) <= 200


def test_the_page_may_call_nobody_else(address):
    import httpx

    answer = httpx.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == serve.POLICY
    assert "connect-src 'self'" in serve.POLICY
    assert "default-src 'self'" in serve.POLICY


def test_many_visitors_at_once_are_all_served(address):
    from gradio_client import Client

    results: list[Any] = []

    def visit(index: int) -> None:
        client = Client(address, verbose=False, analytics_enabled=False)
        *_, command = client.predict(
            None, f"faces:{index % 3}", None, "faces:8", "1-5", 1.0, "keep", False, 0, api_name="/exchange"
        )
        results.append(command)

    visitors = [threading.Thread(target=visit, args=(index,)) for index in range(6)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(120)
    assert sorted(results) == sorted(
        f"diti edit faces:{index % 3} faces:8 --chunks 1-5 --alphas 1.00 --model shipped" for index in range(6)
    )


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_in_a_browser(address, tmp_path):
    """Loads the page, drags a range, moves alpha and an attribute, uploads, downloads, and sees an error in words."""
    playwright = pytest.importorskip("playwright.sync_api")
    Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "photo.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    wait = 120_000
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        called: list[str] = []
        page.on("request", lambda request: called.append(request.url))
        page.goto(address)
        command = "(document.querySelector('#command textarea')?.value ?? '')"
        page.wait_for_function(f"{command}.includes('--chunks 8-21')", timeout=wait)
        cells = page.locator("#chunk-bar button")
        assert cells.count() == 64
        start, end = cells.nth(10).bounding_box(), cells.nth(20).bounding_box()
        page.mouse.move(start["x"] + 3, start["y"] + 5)
        page.mouse.down()
        page.mouse.move(end["x"] + 3, end["y"] + 5, steps=5)
        page.mouse.up()
        page.wait_for_function(f"{command}.includes('--chunks 10-20')", timeout=wait)
        pressed = page.locator('#chunk-bar button[aria-pressed="true"]')
        assert [pressed.nth(at).inner_text() for at in range(pressed.count())] == [str(at) for at in range(10, 21)]
        cells.nth(5).focus()
        page.keyboard.press("Shift+ArrowRight")
        page.wait_for_function(f"{command}.includes('--chunks 5-6')", timeout=wait)
        page.locator("#alpha input[type=number]").fill("0.5")
        page.keyboard.press("Tab")
        page.wait_for_function(f"{command}.includes('--alphas 0.50')", timeout=wait)
        page.set_input_files("#upload-a input[type=file]", str(tmp_path / "photo.png"))
        page.wait_for_function(f"{command}.includes('diti edit photo.png')", timeout=wait)
        with page.expect_download(timeout=wait) as download:
            page.click("#download-png")
        said = Image.open(download.value.path()).info["diti:command"]
        assert said == "diti edit photo.png faces:8 --chunks 5-6 --alphas 0.50 --model shipped"
        with page.expect_download(timeout=wait) as download:
            page.click("#download-singles")
        with zipfile.ZipFile(download.value.path()) as archive:
            assert sorted(archive.namelist())[0] == "a_edited.png"
            assert Image.open(io.BytesIO(archive.read("a_edited.png"))).size == (32, 32)
        page.set_input_files("#upload-b input[type=file]", str(tmp_path / "bad.png"))
        page.get_by_text("bad.png cannot be read: not an image.").first.wait_for(timeout=wait)
        page.get_by_role("tab", name="Attributes").click()
        page.locator("#slider-0 input[type=number]").fill("0.5")
        page.keyboard.press("Tab")
        moved = "document.querySelector('#attribute-command textarea').value"
        page.wait_for_function(f"{moved}.includes('--attribute hat --amount=0.50')", timeout=wait)
        page.get_by_role("tab", name="Look inside").click()
        page.wait_for_selector("#inside-bars img", timeout=wait)
        assert [url for url in called if not url.startswith((address.rstrip("/"), "data:", "blob:"))] == []
        browser.close()
