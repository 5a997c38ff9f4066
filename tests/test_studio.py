"""`diti studio`: the same pixels as `diti edit`, a page that a browser can use, and nobody else who is called."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks import studio
from benchmarks.children import PACKAGES
from diticli.commands.app import app
from diticli.editing.attribute import edit_attribute
from diticli.editing.inputs import read_source
from diticli.editing.pair import edit_pair
from diticli.editing.read_again import read_again, unmoved_warnings
from diticli.editing.settings import EditSettings
from diticli.errors import ConfigError, DataError, DiTiError
from diticli.models.load import load_model
from diticli.studio import serve, workbench
from diticli.studio.space import export_space
from diticli.studio.workbench import PREVIEW_STEPS, SupersededError, Workbench

STEPS = EditSettings(invert_steps=4, decode_steps=4)
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
    chosen = {"hat": (1, 5, 9), "smile": (2, 5, 7)}
    weights = np.stack(
        [np.isin(np.arange(d), dims) * row for dims, row in zip(chosen.values(), probe.weights, strict=True)]
    )
    masked = replace(probe, weights=weights.astype(np.float32))
    return Directions(full=probe, masked=masked, chosen=chosen, patterns=probe.weights, layout=model.chunks)


@pytest.fixture
def bench(model, directions) -> Workbench:
    return Workbench(model, settings=STEPS, directions=directions, kept=2)


def faces(model, *sources: str) -> list[Image.Image]:
    return [read_source(source, model.resolution, model.crop) for source in sources]


@pytest.mark.parametrize("noise", ["keep", "slerp", "swap"])
def test_an_exchange_gives_the_pixels_of_diti_edit(model, bench, noise):
    chunks = model.chunks.parse("10-20")
    settings = replace(STEPS, noise=noise)
    names = ("faces:3", "faces:8")
    expected = edit_pair(model, *faces(model, *names), [chunks], [0.5, 1.0], settings=settings, names=names)
    a, b = bench.picture("faces:3"), bench.picture("faces:8")
    assert np.array_equal(a.original, expected.originals[0])
    assert np.abs(b.reconstruction.astype(int) - expected.reconstructions[1]).max() <= 1
    assert a.psnr == pytest.approx(expected.psnr[0], abs=0.01)
    shown = bench.exchange(a, b, chunks, [0.5, 1.0], noise)
    assert list(shown.edits) == list(expected.edits)
    assert shown.to_metadata() == expected.to_metadata()
    for edit, pixels in expected.edits.items():
        difference = np.abs(pixels.astype(int) - shown.edits[edit])
        assert difference.max() <= 1  # other batches add up in another order
        assert (difference > 0).mean() < 0.01


def test_alpha_0_is_the_reconstruction_and_decodes_nothing(bench, monkeypatch):
    a, b = bench.picture("faces:3"), bench.picture("faces:8")
    monkeypatch.setattr(bench, "_sampler", None)
    shown = bench.exchange(a, b, (1, 2), [0.0])
    left, right = shown.edits.values()
    assert left is a.reconstruction
    assert right is b.reconstruction


@pytest.mark.parametrize("learned", [False, True])
def test_moves_of_several_attributes_give_the_pixels_of_diti_edit(model, bench, directions, learned):
    (image,) = faces(model, "faces:3")
    expected = edit_attribute(
        model,
        [image],
        directions,
        ["hat"],
        [0.5],
        also={"smile": -0.25},
        chunk_sets=[tuple(range(40))],
        learned_dims=3 if learned else None,
        settings=STEPS,
        names=["faces:3"],
    )
    amounts = {"hat": 0.5, "smile": -0.25}
    shown = bench.move(bench.picture("faces:3"), amounts, tuple(range(40)), learned=learned)
    assert list(shown.edits) == list(expected.edits)
    assert shown.to_metadata() == expected.to_metadata()
    said = unmoved_warnings(expected, read_again(model, directions, expected), {}, model)
    spoilt = bench.picture("faces:3")
    assert len(bench.move_warnings(spoilt, shown)) == len(bench.warnings(spoilt)) + len(said)
    ((pixels,), (theirs,)) = shown.edits.values(), expected.edits.values()
    assert np.abs(pixels.astype(int) - theirs).max() <= 1
    alone = bench.move(bench.picture("faces:3"), {"hat": 0.5}, tuple(range(40)), learned=learned)
    assert (next(iter(alone.edits.values())) != pixels).any()


def test_no_move_is_the_reconstruction(bench):
    picture = bench.picture("faces:3")
    (pixels,) = bench.move(picture, {"hat": 0.0}).edits.values()
    assert pixels is picture.reconstruction


def test_inversions_are_kept_up_to_a_bound(model, bench, tmp_path):
    first = bench.picture("faces:3")
    assert bench.picture("faces:3").latents is first.latents
    bench.picture("faces:4")
    bench.picture("faces:5")
    assert len(bench._pictures) == 2
    assert bench.picture("faces:3").latents is not first.latents
    assert Workbench(model)._kept == workbench.KEPT_PICTURES


def test_few_large_pictures_are_kept(model, monkeypatch):
    monkeypatch.setattr(workbench, "KEPT_BYTES", 3 * 30 * model.resolution**2)
    assert Workbench(model)._kept == 3


def test_a_picture_is_called_as_its_own_visitor_calls_it(bench, tmp_path):
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "secret name.png")
    assert bench.picture(str(tmp_path / "secret name.png")).name == "secret name.png"
    assert bench.picture(str(tmp_path / "a.png")).name == "a.png"


def test_a_newer_change_ends_older_work(model, bench):
    a, b = bench.picture("faces:3"), bench.picture("faces:8")
    asked = []

    def stale() -> bool:
        asked.append(None)
        return len(asked) == 2

    with pytest.raises(SupersededError):
        bench.exchange(a, b, (1, 2), [1.0], stale=stale)
    assert len(asked) == 2  # in the middle, not at the end
    assert bench.preview.decode_steps == STEPS.decode_steps
    assert Workbench(model, settings=EditSettings()).preview.decode_steps == PREVIEW_STEPS < EditSettings().decode_steps


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
    (tmp_path / "evaluation.json").write_text(json.dumps({"models": [{"atlas": atlas, "model_hash": "v2-a"}]}))
    assert serve.read_effects(tmp_path, lambda _: "v2-a")[1] == [[0, 1], [2, 3]]
    with pytest.raises(ConfigError, match="measures another model"):
        serve.read_effects(tmp_path, lambda _: "v2-b")
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


@contextmanager
def serving(page_module, bench, options: Any = None, **how: Any) -> Iterator[str]:
    """The address of a running page."""
    with serve.private_folder() as folder:
        page = page_module.build_page(bench, options or options_of(page_module, bench.model))
        given = {"host": "127.0.0.1", "port": free_port(), "share": False, "browser": False, "auth": None}
        _, address = serve.launch(page, wait=False, **(given | how))
        yield address
        page.close()
    assert not folder.exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(page_module, model, directions) -> Iterator[str]:
    """A running page of a few steps."""
    with serving(page_module, Workbench(model, settings=STEPS, directions=directions)) as address:
        yield address


def test_commands_repeat_what_is_shown(page_module, bench, model):
    from diticli.studio import attribute_tab, inside_tab, pair_tab

    a, b = bench.picture("faces:3"), replace(bench.picture("faces:8"), name="-my photo.png")
    asked = pair_tab.Asked(None, "faces:3", None, "faces:8", "10-20", 1.0, "slerp", True)
    line = pair_tab.pair_command(a, b, "10-20", [0.25, 1.0], asked, "shipped")
    assert shlex.split(line) == [
        *("diti", "edit", "faces:3", "./-my photo.png", "--chunks", "10-20", "--alphas", "0.25,1.00"),
        *("--noise", "slerp", "--difference", "--model", "shipped"),
    ]
    options = options_of(page_module, model)
    moved = bench.move(a, {"hat": 0.5, "smile": -0.25}, (1, 2), learned=True)
    assert shlex.split(attribute_tab.attribute_command(a, moved, "1-2", options)) == [
        *("diti", "edit", "faces:3", "--attribute", "hat", "--amount=0.50", "--also", "smile=-0.25"),
        *("--dims", "3", "--chunks", "1-2", "--probe", "probe", "--model", "shipped"),
    ]
    assert inside_tab.inside_command(a, options).splitlines() == [
        "diti edit faces:3 --reconstruct --noise keep --model shipped",
        "diti encode faces:4 -o feats.npy --model shipped  # the features are row 3",
    ]


def test_the_command_line_moves_several_attributes(bench, directions, tmp_path, monkeypatch):
    """`--also`, with the command that the page shows: the PNG holds what the page shows."""
    from diticli.probing.directions import save_directions

    save_directions(directions, tmp_path / "probe")
    shown = bench.move(bench.picture("faces:3"), {"hat": 0.5, "smile": -0.25}, learned=True)
    monkeypatch.chdir(tmp_path)
    line = "edit faces:3 --attribute hat --amount=0.50 --also smile=-0.25 --dims 3 --probe probe --model shipped"
    result = CliRunner().invoke(app, [*line.split(), "--steps", str(STEPS.decode_steps), "--separate", "singles"])
    assert result.exit_code == 0, result.output
    (edited,) = (tmp_path / "singles").glob("faces-3_hat_*")
    assert edited.name == "faces-3_hat_+0.5_smile_-0.25.png"
    (pixels,) = shown.edits.values()
    assert np.abs(np.asarray(Image.open(edited)).astype(int) - pixels).max() <= 1
    assert Image.open(edited).info["diti:also"] == "smile -0.25"
    for wrong in ("smile", "=1", "smile=x", "smile=0,1", "smile=99"):
        refused = CliRunner().invoke(app, [*line.replace("smile=-0.25", wrong).split(), "--json"])
        assert refused.exit_code == 2, wrong


def test_older_changes_are_stale_in_whatever_order_they_arrive(page_module):
    from diticli.studio import parts

    changes = parts.Changes()
    changes.note("visitor", "pair", 2.0)
    changes.note("visitor", "pair", 1.0)  # sent before, arrived after
    assert changes.is_stale("visitor", "pair", 1.5)
    assert not changes.is_stale("visitor", "pair", 2.0)
    assert not changes.is_stale("visitor", "attribute", 1.5)


def test_work_for_who_has_left_is_stale_and_nothing_else_is_kept(page_module, monkeypatch):
    from diticli.studio import parts

    monkeypatch.setattr(parts, "_GONE", 3)
    changes = parts.Changes()
    changes.note("visitor", "pair", 2.0)
    changes.leave("visitor")
    assert changes._last == {}
    assert changes.has_left("visitor")
    assert changes.is_stale("visitor", "pair", 3.0)
    changes.note("visitor", "pair", 3.0)  # the connection was lost for a while only
    assert not changes.is_stale("visitor", "pair", 3.0)
    for visitor in range(10):
        changes.leave(str(visitor))
    assert len(changes._gone) == 3


def test_pictures_of_old_changes_are_deleted(page_module, tmp_path, monkeypatch):
    from diticli.studio import parts

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(parts, "KEPT_OUTPUTS", 2)
    monkeypatch.setattr(parts, "_made", type(parts._made)())
    made = [Path(parts.shown({"a": np.zeros((2, 2, 3), np.uint8)}, {"diti:command": "x"})[0]) for _ in range(4)]
    assert [path.exists() for path in made] == [False, False, True, True]
    assert sorted(tmp_path.iterdir()) == sorted(path.parent for path in made[2:])
    assert Image.open(made[3]).info["diti:command"] == "x"


def test_words_open_no_files_of_this_machine(page_module, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    from diticli.studio import parts

    with pytest.raises(DataError, match="no built-in face"):
        parts.face_word(str(tmp_path / "secret.png"))


def test_names_are_escaped_in_the_bar(page_module, model):
    from diticli.studio import pair_tab

    bar = pair_tab.chunk_bar(model.chunks, "1-2", options_of(page_module, model))
    shown = [*bar.props["cells"], *(text for _, text in bar.props["moves"])]
    assert "<b>odd" not in bar.html_template + "".join(shown)
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


def test_twenty_visitors_at_once_are_all_served_and_told_their_place(page_module, model):
    with serving(page_module, Workbench(model, settings=EditSettings(invert_steps=1, decode_steps=1))) as address:
        answers, errors = studio.many_visitors(address, os.getpid(), 20, 1, 64)
    assert errors == []
    assert len(answers) == 20
    assert max(answer.place for answer in answers) >= 5


def test_the_benchmark_takes_times_of_preview_and_full_picture(address, capsys):
    facts: dict[str, Any] = {"errors": []}
    with studio.beside(os.getpid(), facts):
        answers = studio.one_visitor(address, os.getpid(), 3, 64)
    assert all(0 < answer.preview <= answer.full for answer in answers)
    assert all(answer.processor > 0 for answer in answers)
    facts |= {"count": 3, "seconds": studio.summary(answers)}
    assert facts["memory_mib"] > 0
    assert facts["seconds"]["preview"]["p50"] <= facts["seconds"]["full"]["p95"]
    assert "within 2 s" in studio.table({"changes": facts, "visitors": facts})
    with pytest.raises(RuntimeError, match="asked for"):
        studio.change(studio.Visitor(address), os.getpid(), ("faces:3", "secret.png"), "1-2", 0.5)


def bad_uploads(folder: Path) -> dict[str, Path]:
    """Files that are no pictures, or no usable ones, by what is said of them."""
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(whole, "PNG")
    damaged = whole.getvalue()[: len(whole.getvalue()) // 2]
    large = io.BytesIO()
    Image.new("1", (20000, 20000)).save(large, "PNG")
    contents = {"text.png": b"no picture", "empty.jpg": b"", "damaged.png": damaged, "large.png": large.getvalue()}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def test_bad_uploads_are_refused_in_words(address, tmp_path, capfd):
    visitor = studio.Visitor(address)
    for name, path in bad_uploads(tmp_path).items():
        (*_, last) = visitor.exchange(visitor.upload(path), "faces:3", None, "faces:8", "1-5", 1.0, "keep", False)
        assert last["success"] is False
        assert last["output"]["error"].startswith(f"{name} cannot be read: "), last
        assert str(tmp_path) not in str(last)
    for inputs in (
        (None, "/etc/hosts", None, "faces:8", "1-5", 1.0, "keep", False),
        (None, "faces:3", None, "faces:8", "0-99999999999", 1.0, "keep", False),
        (None, "faces:3", None, "faces:8", "64", 1.0, "keep", False),
        (None, "faces:3", None, "faces:8", "", 1.0, "keep", False),
        (None, "faces:3", None, "faces:8", "1-5", 99, "keep", False),
        (None, "faces:3", None, "faces:8", "1-5", 1.0, "random", False),
        ({"path": "/etc/hosts", "meta": {"_type": "gradio.FileData"}}, "", None, "faces:8", "1", 1.0, "keep", False),
    ):
        (*_, last) = visitor.exchange(*inputs)
        assert last["success"] is False, inputs
        assert "Traceback" not in str(last)
    assert visitor.upload(bad_uploads(tmp_path)["text.png"])  # still there for others


@pytest.mark.parametrize("kind", ["RGBA", "L", "I;16", "1"])
@pytest.mark.parametrize("size", [(1, 1), (700, 9), (33, 900)])
def test_pictures_of_any_kind_and_size_are_taken(bench, tmp_path, kind, size):
    Image.new(kind, size).save(tmp_path / "a.png")
    assert bench.picture(str(tmp_path / "a.png")).original.shape == (32, 32, 3)


def test_a_password_is_asked_for_everything(page_module, bench):
    import httpx

    with serving(page_module, bench, auth=("anna", "secret")) as address:
        data = {"data": [None, "faces:3", None, "faces:8", "1", 1.0, "keep", False, 0]}
        assert httpx.post(f"{address}gradio_api/run/exchange", json=data).status_code == 401
        assert httpx.get(f"{address}gradio_api/file=/etc/hosts").status_code == 401
        wrong = httpx.post(f"{address}login", data={"username": "anna", "password": "x"})
        assert wrong.status_code == 400
        right = httpx.post(f"{address}login", data={"username": "anna", "password": "secret"})
        assert right.json() == {"success": True}


REFUSE = """
import os, sys

def refuse(event, args):
    name = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}.get(event)
    if name is None:
        return
    place = args[name]
    host = place[0] if isinstance(place, tuple) else place
    if isinstance(place, tuple) or name == 0:
        if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
            with open(os.environ["CALLED"], "a") as file:
                print(event, host, file=file)
            raise OSError("refused")

sys.addaudithook(refuse)
"""


@pytest.mark.parametrize("way", ["command", "space"])
def test_whole_programs_call_nobody_outside_and_leave_nothing(page_module, tmp_path, monkeypatch, way):
    """`diti studio`, and the exported app as it is: every call that leaves this machine is refused and noted."""
    for name in ("python", "tmp", "space"):
        (tmp_path / name).mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(REFUSE)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("CALLED", str(tmp_path / "called"))
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(free_port()))
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    command = ["-m", "diticli", "studio", "--no-browser", "--port", os.environ["GRADIO_SERVER_PORT"]]
    if way == "space":
        written = CliRunner().invoke(app, ["studio", "--export-space", str(tmp_path / "space")])
        assert written.exit_code == 0, written.output
        command = ["app.py"]
    packages = [tmp_path / "python", *PACKAGES]
    with studio.running_studio(command, tmp_path / "space", packages) as (address, pid):
        monkeypatch.delenv("TMPDIR")  # a socket of the browser needs a shorter path
        (answer,) = studio.one_visitor(address, pid, 1, 64)
        assert answer.preview < answer.full
        if BROWSER is not None:
            with browser_page() as page:
                page.goto(address)
                page.wait_for_function("document.querySelectorAll('.pixelated img').length >= 6", timeout=WAIT)
                assert page.called_outside(address) == []
    assert not (tmp_path / "called").exists(), (tmp_path / "called").read_text()
    assert list((tmp_path / "tmp").glob("diti-studio-*")) == []


# ---------------------------------------------------------------- in a browser

WAIT = 120_000
COMMAND = "(document.querySelector('#command textarea')?.value ?? '')"
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium")


@contextmanager
def browser_page(**how: Any) -> Iterator[Any]:
    """A page of a browser that finds no host but this one; `called_outside(address)` lists what it asked for."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", alone])
        page = browser.new_context(**({"viewport": {"width": 1280, "height": 1400}} | how)).new_page()
        called: list[str] = []
        page.on("request", lambda request: called.append(request.url))
        page.called_outside = lambda address: [
            url for url in called if not url.startswith((address.rstrip("/"), "data:", "blob:"))
        ]
        yield page
        browser.close()


class Endless(Workbench):
    """Works on a full picture until that is stale."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, settings=STEPS)
        self.ended: list[str] = []
        self.endless = True

    def exchange(self, *values: Any, preview: bool = False, stale: Any = None, **how: Any) -> Any:
        until = time.monotonic() + 60
        while self.endless and not preview and time.monotonic() < until:
            time.sleep(0.01)
            if stale():
                self.ended.append("stale")
                raise SupersededError
        return super().exchange(*values, preview=preview, stale=stale, **how)


def wait_for(holds: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    assert holds()


@needs_browser
def test_a_newer_change_and_a_closed_tab_end_work_and_a_queue_shows_its_place(page_module, model, monkeypatch):
    from diticli.studio import parts

    bench, changes = Endless(model), parts.Changes()
    monkeypatch.setattr(page_module, "Changes", lambda: changes)
    with serving(page_module, bench) as address, browser_page() as page:
        page.goto(address)
        page.wait_for_function(f"{COMMAND}.includes('--alphas 1.00')", timeout=WAIT)  # the preview
        page.locator("#alpha input[type=number]").fill("0.5")
        page.keyboard.press("Tab")
        page.wait_for_function(f"{COMMAND}.includes('--alphas 0.50')", timeout=WAIT)
        assert bench.ended == ["stale"]
        other = page.context.new_page()
        other.goto(address)
        other.get_by_text(re.compile(r"queue: \d+( of |/)\d+", re.IGNORECASE)).first.wait_for(timeout=WAIT)
        page.close()
        wait_for(lambda: len(bench.ended) == 2)
        other.wait_for_function(f"{COMMAND}.includes('--alphas 1.00')", timeout=WAIT)  # its turn
        bench.endless = False
        other.wait_for_function("!document.querySelector('#status').innerText.includes('Preview')", timeout=WAIT)
        other.close()
        wait_for(lambda: changes._last == {})
    assert bench.ended == ["stale", "stale"]


@needs_browser
def test_a_screen_reader_has_a_name_for_everything(address):
    with browser_page(viewport={"width": 390, "height": 844}, color_scheme="dark") as page:
        page.goto(address)
        page.wait_for_function("document.querySelectorAll('.pixelated img[alt]').length >= 6", timeout=WAIT)
        said = page.locator("body").aria_snapshot()
        for name in (
            'img "A with B\'s"',
            'button "Chunk 8, timesteps 16 to 19, moves hat 0.84"',
            'group "Chunks, from fine to coarse"',
            'textbox "The same on the command line"',
            'button "Strip over alphas"',
        ):
            assert name in said, said
        assert not re.search(
            r"^\s*- (button|textbox|slider|spinbutton|checkbox|combobox)(?! \")", said, re.MULTILINE
        ), said
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing wider than a phone
        assert page.evaluate("document.body.classList.contains('dark')")
        assert page.evaluate("document.querySelector('#status').ariaLive") == "polite"


@needs_browser
def test_in_a_browser(address, tmp_path):
    """Loads the page, drags a range, moves alpha and an attribute, uploads, downloads, and sees an error in words."""
    Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "photo.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with browser_page() as page:
        page.goto(address)
        page.wait_for_function(f"{COMMAND}.includes('--chunks 8-21')", timeout=WAIT)
        cells = page.locator("#chunk-bar button")
        assert cells.count() == 64
        start, end = cells.nth(10).bounding_box(), cells.nth(20).bounding_box()
        page.mouse.move(start["x"] + 3, start["y"] + 5)
        page.mouse.down()
        page.mouse.move(end["x"] + 3, end["y"] + 5, steps=5)
        page.mouse.up()
        page.wait_for_function(f"{COMMAND}.includes('--chunks 10-20')", timeout=WAIT)
        pressed = page.locator('#chunk-bar button[aria-pressed="true"]')
        assert [pressed.nth(at).inner_text() for at in range(pressed.count())] == [str(at) for at in range(10, 21)]
        cells.nth(5).focus()
        page.keyboard.press("Shift+ArrowRight")
        page.wait_for_function(f"{COMMAND}.includes('--chunks 5-6')", timeout=WAIT)
        page.locator("#alpha input[type=number]").fill("0.5")
        page.keyboard.press("Tab")
        page.wait_for_function(f"{COMMAND}.includes('--alphas 0.50')", timeout=WAIT)
        page.set_input_files("#upload-a input[type=file]", str(tmp_path / "photo.png"))
        page.wait_for_function(f"{COMMAND}.includes('diti edit photo.png')", timeout=WAIT)
        command = "diti edit photo.png faces:8 --chunks 5-6 --alphas 0.50 --model shipped"
        with page.expect_download(timeout=WAIT) as download:
            page.click("#download-png")
        assert download.value.suggested_filename == "photo_faces-8_chunks5-6_alpha0.50.png"
        assert Image.open(download.value.path()).info["diti:command"] == command
        with page.expect_download(timeout=WAIT) as download:
            page.locator("#out-edit-a").get_by_role("button", name="Download").click()
        assert download.value.suggested_filename == "a_chunks5-6_alpha0.50.png"
        single = Image.open(download.value.path())
        assert (single.size, single.info["diti:command"]) == ((32, 32), command)
        with page.expect_download(timeout=WAIT) as download:
            page.click("#download-singles")
        assert download.value.suggested_filename == "photo_faces-8_chunks5-6_alpha0.50.zip"
        with zipfile.ZipFile(download.value.path()) as archive:
            assert sorted(archive.namelist()) == [
                "a_chunks5-6_alpha0.50.png",
                "a_original.png",
                "a_reconstruction.png",
                "b_chunks5-6_alpha0.50.png",
                "b_original.png",
                "b_reconstruction.png",
            ]
            same = Image.open(io.BytesIO(archive.read("a_chunks5-6_alpha0.50.png")))
        assert np.array_equal(np.asarray(same), np.asarray(single))
        page.click("#make-strip")
        wide = "document.querySelector('#wide-command textarea')?.value ?? ''"
        page.wait_for_function(f"({wide}).includes('--alphas 0.00,0.25,0.50,0.75,1.00')", timeout=WAIT)
        page.click("#make-animation")
        page.wait_for_function(f"({wide}).includes('--animate edit.webp')", timeout=WAIT)
        with page.expect_download(timeout=WAIT) as download:
            page.locator("#wide").get_by_role("button", name="Download").click()
        assert download.value.suggested_filename == "photo_faces-8_chunks5-6.webp"
        assert Image.open(download.value.path()).n_frames > 5
        page.set_input_files("#upload-b input[type=file]", str(tmp_path / "bad.png"))
        page.get_by_text("bad.png cannot be read: not an image.").first.wait_for(timeout=WAIT)
        page.get_by_role("tab", name="Attributes").click()
        for slider, amount in (("#slider-0", "0.5"), ("#slider-1", "-0.25")):
            page.locator(f"{slider} input[type=number]").fill(amount)
            page.keyboard.press("Tab")
        moved = "document.querySelector('#attribute-command textarea').value"
        page.wait_for_function(f"{moved}.includes('--attribute hat --amount=0.50 --also smile=-0.25')", timeout=WAIT)
        page.get_by_text("Only the 3 dims of each attribute's learned mask").click()
        page.wait_for_function(f"{moved}.includes('--dims 3')", timeout=WAIT)
        page.get_by_text("Read again from the edited picture").wait_for(timeout=WAIT)
        page.click("#attribute-reset")
        page.wait_for_function(f"{moved}.includes('--reconstruct')", timeout=WAIT)
        page.get_by_role("tab", name="Look inside").click()
        page.wait_for_selector("#inside-bars img", timeout=WAIT)
        assert page.called_outside(address) == []
