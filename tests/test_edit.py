import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from diticli.analysis.edit import Edit, EditSettings, Noise, edit_pair, psnr
from diticli.analysis.edit_pictures import edit_strip, write_separate
from diticli.analysis.mixing import alpha_text, mix_chunks, parse_alphas, slerp
from diticli.chunks import ChunkLayout
from diticli.errors import ChunkError, ConfigError, DataError

SIZE = 8
LAYOUT = ChunkLayout.uniform(chunks=4, latent_dim=SIZE)


class ReadablePipeline:
    """Red shows z (column d is dim d), green shows x_T, blue is black: a picture says what was changed."""

    chunks = LAYOUT
    resolution = SIZE
    crop = "center"
    model_hash = "0123456789abcdef"

    def __init__(self):
        self.batches = []
        self.samplers = []

    def preprocess(self, images):
        arrays = np.stack([np.asarray(image.convert("RGB").resize((SIZE, SIZE))) for image in images])
        return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1

    def encode(self, images):
        return images[:, 0, 0, :].clone()

    def invert(self, images, z, steps=100, *, callback=None, **sampler):
        assert torch.equal(z, self.encode(images))  # each image under its own features
        self.samplers.append(sampler)
        self.inverted_with = steps
        for step in range(steps):
            callback(step + 1, steps)
        return images.clone()

    def decode(self, x_T, z, steps=100, *, callback=None, **sampler):
        self.batches.append(len(z))
        self.samplers.append(sampler)
        for step in range(steps):
            callback(step + 1, steps)
        out = torch.full_like(x_T, -1.0)
        out[:, 0] = z[:, None, :]
        out[:, 1] = x_T[:, 1]
        return out


class Recorder:
    def __init__(self):
        self.tasks = []

    def start(self, title, total, unit="images"):
        self.tasks.append([title, total, 0])

    def advance(self, amount=1, **fields):
        self.tasks[-1][2] += amount

    def finish(self):
        pass

    note = warn = finish


def picture(red, green):
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = red, green
    return Image.fromarray(pixels)


A, B = picture(np.arange(SIZE) * 10, 200), picture(np.arange(SIZE) * 10 + 100, 40)


def run(chunk_sets=((1,),), alphas=(0.0, 0.5, 1.0), pipeline=None, reporter=None, **settings):
    settings = {"invert_steps": 3, "decode_steps": 2, **settings}
    return edit_pair(
        pipeline or ReadablePipeline(),
        A,
        B,
        chunk_sets,
        alphas,
        settings=EditSettings(**settings),
        reporter=reporter,
    )


# mixing


def test_slerp_ends_and_stays_on_the_sphere():
    a, b = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    b *= (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    assert torch.allclose(middle.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-5)
    assert middle.dtype == torch.float32


def test_slerp_agrees_with_the_formula_and_takes_one_alpha_a_sample():
    a, b = torch.randn(4, 2, 5).double(), torch.randn(4, 2, 5).double()
    alpha = torch.tensor([0.0, 0.25, 0.7, 1.0])
    mixed = slerp(a, b, alpha)
    for i in range(4):
        x, y = a[i].flatten().numpy(), b[i].flatten().numpy()
        theta = math.acos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        w = float(alpha[i])
        expected = (math.sin((1 - w) * theta) * x + math.sin(w * theta) * y) / math.sin(theta)
        np.testing.assert_allclose(mixed[i].flatten().numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_slerp_of_parallel_vectors_is_the_straight_line(factor):
    a = torch.randn(2, 3, 4, 4)
    assert torch.allclose(slerp(a, factor * a, 0.25), torch.lerp(a, factor * a, 0.25), atol=1e-5)


def test_mix_changes_only_the_chosen_slices():
    z_a, z_b = torch.randn(2, SIZE), torch.randn(2, SIZE)
    mixed = mix_chunks(z_a, z_b, LAYOUT, (0, 2), torch.tensor([0.25, 1.0]))
    for dims, chosen in (
        (slice(0, 2), True),
        (slice(2, 4), False),
        (slice(4, 6), True),
        (slice(6, 8), False),
    ):
        if chosen:
            assert torch.allclose(mixed[0, dims], 0.75 * z_a[0, dims] + 0.25 * z_b[0, dims])
            assert torch.equal(mixed[1, dims], z_b[1, dims])
        else:
            assert torch.equal(mixed[:, dims], z_a[:, dims])


def test_mix_refuses_wrong_chunks_and_widths():
    z = torch.zeros(1, SIZE)
    with pytest.raises(ChunkError, match="Chunk 4"):
        mix_chunks(z, z, LAYOUT, (4,), 1.0)
    with pytest.raises(ChunkError):
        mix_chunks(z, z, LAYOUT, (-1,), 1.0)
    with pytest.raises(ConfigError, match="8 dims"):
        mix_chunks(torch.zeros(1, 7), torch.zeros(1, 7), LAYOUT, (0,), 1.0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("0:1:5", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("0,0.5,1", (0.0, 0.5, 1.0)),
        ("1", (1.0,)),
        ("0:1:1", (0.0,)),
        ("1:0:3", (1.0, 0.5, 0.0)),
        ("-0.5, 1.5", (-0.5, 1.5)),
        ("1,1,0.00001", (1.0, 0.0)),
    ],
)
def test_alphas(spec, expected):
    assert parse_alphas(spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "x",
        "0:1",
        "0:1:0",
        "0:1:-2",
        "0:1:51",
        "0:1:2.5",
        "nan",
        "inf",
        "0:inf:3",
        "0,9",
        "0:1:2:3",
        "1,,2",
    ],
)
def test_bad_alphas_say_what_to_write(spec):
    with pytest.raises(ConfigError) as caught:
        parse_alphas(spec)
    assert caught.value.remedy


def test_alpha_text_tells_alphas_apart():
    texts = {alpha_text(alpha) for alpha in parse_alphas("0.5:1:50")}
    assert len(texts) == 50
    assert [alpha_text(a) for a in (0.0, 0.5, 1.0, 0.3333)] == ["0.00", "0.50", "1.00", "0.3333"]


# edit_pair


def test_only_the_chosen_chunks_change_and_only_by_alpha():
    result = run()
    a, b = np.arange(SIZE) * 10.0, np.arange(SIZE) * 10.0 + 100
    for side, own, other in (("a", a, b), ("b", b, a)):
        for alpha in (0.0, 0.5, 1.0):
            red = result.edits[Edit(side, (1,), alpha)][0, :, 0]
            expected = own.copy()
            expected[2:4] = (1 - alpha) * own[2:4] + alpha * other[2:4]
            np.testing.assert_allclose(red, expected, atol=1)
            untouched = [0, 1, 4, 5, 6, 7]
            assert np.array_equal(red[untouched], own[untouched])
    assert np.array_equal(result.originals[0], np.asarray(A))
    assert np.array_equal(result.reconstructions, result.originals)
    assert result.psnr == (math.inf, math.inf)
    assert result.z.dtype == np.float32
    assert result.z.shape == (2, SIZE)


@pytest.mark.parametrize(
    ("noise", "half", "full"),
    [("keep", 200, 200), ("swap", 40, 40), ("slerp", None, 40), ("random", None, None)],
)
def test_noise_modes(noise, half, full):
    edits = run(noise=noise).edits
    for alpha, expected in ((0.5, half), (1.0, full)):
        green = edits[Edit("a", (1,), alpha)][..., 1]
        if expected is not None:
            assert np.array_equal(green, np.full_like(green, expected))
    if noise == "random":
        greens = [edit[..., 1] for edit in edits.values()]
        assert all(np.array_equal(green, greens[0]) for green in greens)
        assert not np.array_equal(greens[0], run(noise=noise, seed=1).edits[Edit("a", (1,), 1.0)][..., 1])
        assert np.array_equal(greens[0], run(noise=noise).edits[Edit("a", (1,), 1.0)][..., 1])


def test_batches_are_bounded_and_alpha_zero_costs_nothing():
    pipeline, reporter = ReadablePipeline(), Recorder()
    result = run(((0,), (1, 2, 3)), (0.0, 0.5, 1.0), pipeline, reporter, batch_size=4)
    assert pipeline.batches == [4, 4, 2]  # two reconstructions + 2 sets x 2 sides x 2 alphas
    assert len(result.edits) == 12
    assert pipeline.inverted_with == 3
    assert [task[1:] for task in reporter.tasks] == [[3, 3], [6, 6]]
    whole = ReadablePipeline()
    again = run(((0,), (1, 2, 3)), (0.0, 0.5, 1.0), whole, batch_size=64)
    assert whole.batches == [10]
    assert all(np.array_equal(again.edits[key], value) for key, value in result.edits.items())


def test_bad_requests():
    with pytest.raises(ChunkError, match="Chunk 4"):
        run(((4,),))
    with pytest.raises(ChunkError, match="at least one chunk"):
        run(((),))
    with pytest.raises(ConfigError):
        run(())
    with pytest.raises(ConfigError):
        run(alphas=())
    with pytest.raises(ConfigError, match="sideways"):
        EditSettings(noise="sideways")
    with pytest.raises(ConfigError, match="decode_steps"):
        EditSettings(decode_steps=0)
    assert get_args(Noise) == ("keep", "slerp", "swap", "random")


def test_official_sampling_clamps_both_ways_and_scales_the_shift_by_the_score():
    assert EditSettings.like_official() == EditSettings(
        noise="slerp", invert_steps=1000, decode_steps=100, official=True
    )
    own, official = ReadablePipeline(), ReadablePipeline()
    run(pipeline=own)
    run(pipeline=official, official=True)
    assert own.samplers == [{}, {}]
    assert official.samplers == [{"clip": True, "shift_form": "score"}] * 2


def test_psnr():
    black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    assert psnr(grey, black) == pytest.approx(20 * math.log10(5))
    assert psnr(black, black) == math.inf


# pictures of a result


def test_strip_has_two_rows_a_set_and_shows_the_inputs():
    result = run(((0,), (1, 2)), (0.5,))
    strip = edit_strip(result)
    assert strip.mode == "RGB"
    one = edit_strip(run(((0,),), (0.5,)))
    assert strip.height > one.height + 2 * 96
    colours = {colour for _, colour in strip.getcolors(1 << 20)}
    assert {tuple(result.originals[0][0, c]) for c in range(SIZE)} <= colours
    assert edit_strip(result).tobytes() == strip.tobytes()


def test_separate_files_hold_the_pictures_and_their_provenance(tmp_path):
    result = run(((0, 1), (3,)), (0.0, 0.5))
    paths = write_separate(result, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "a_original.png",
        "a_reconstruction.png",
        "b_original.png",
        "b_reconstruction.png",
        *(f"{side}_chunks{c}_alpha{a}.png" for c in ("0-1", "3") for side in "ab" for a in ("0.00", "0.50")),
    ]
    with Image.open(tmp_path / "new" / "folder" / "b_chunks3_alpha0.50.png") as image:
        assert np.array_equal(np.asarray(image), result.edits[Edit("b", (3,), 0.5)])
        assert image.info["diti:model"] == ReadablePipeline.model_hash
        assert image.info["diti:chunks"] == "chunks 0-1 (t 0-499) | chunk 3 (t 750-999)"
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths)


def test_many_scattered_chunks_still_make_a_file_name(tmp_path):
    pipeline = ReadablePipeline()
    pipeline.chunks = ChunkLayout.uniform(chunks=500, latent_dim=500)
    pipeline.encode = lambda images: images[:, 0].flatten(1).repeat(1, 8)[:, :500]
    pipeline.decode = lambda x_T, z, steps, callback: x_T
    chunks = tuple(range(0, 500, 2))
    paths = write_separate(run((chunks,), (1.0,), pipeline), tmp_path)
    assert all(len(path.name) < 120 for path in paths)
    edit_strip(run((chunks,), (1.0,), pipeline))


# the command


@pytest.fixture
def command(monkeypatch):
    """The edit command as the command line runs it, on the readable pipeline."""
    typer_testing = pytest.importorskip("typer.testing")
    import typer

    from diticli.commands.edit import edit

    loaded = []
    locate = ModuleType("diticli.models.locate")
    locate.load_pipeline = lambda model, device: loaded.append((model, device)) or ReadablePipeline()
    monkeypatch.setitem(sys.modules, "diticli.models.locate", locate)
    app = typer.Typer()
    app.command()(edit)

    def call(*arguments):
        result = typer_testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
        result.loaded = list(loaded)
        return result

    return call


@pytest.fixture
def photos(tmp_path):
    A.save(tmp_path / "a.png")
    B.save(tmp_path / "b.png")
    return tmp_path / "a.png", tmp_path / "b.png"


def test_command_writes_strip_and_singles(command, photos, tmp_path):
    out, singles = tmp_path / "new" / "out.png", tmp_path / "singles"
    options = ("--chunks", "1-2", "-o", out, "--alphas", "1", "--steps", "2", "--separate", singles, "--json")
    result = command(*photos, *options, "--model", "m", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.loaded == [("m", "cpu")]
    with Image.open(out) as image:
        assert image.info["diti:images"] == "a.png | b.png"
        assert image.info["diti:steps"] == "invert 2, decode 2"
    summary = json.loads(result.stdout)
    assert summary["chunks"] == [[1, 2]]
    assert summary["psnr_db"] == [None, None]
    assert (singles / "a_chunks1-2_alpha1.00.png").is_file()
    assert len(summary["separate"]) == len(list(singles.iterdir())) == 6


def test_command_defaults_show_quarters_and_take_faces(command, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(ReadablePipeline, "resolution", 16)  # preprocess makes it 8
    result = command(photos[0], "faces:3", "-o", tmp_path / "out.png", "--steps", "1", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["chunks"] == [[0], [1], [2], [3]]
    assert summary["alphas"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert summary["images"] == ["a.png", "faces:3"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ("keep", 100, 100, False)),
        (("--official",), ("slerp", 1000, 100, True)),
        (("--official", "--steps", "7", "--noise", "keep"), ("keep", 7, 7, True)),
        (("--official", "--invert-steps", "9"), ("slerp", 9, 100, True)),
        (("--steps", "4", "--decode-steps", "5"), ("keep", 4, 5, False)),
    ],
)
def test_command_official_and_steps(command, photos, tmp_path, options, expected):
    result = command(*photos, "-o", tmp_path / "out.png", "--json", "--chunks", "0", "--alphas", "1", *options)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert tuple(summary[key] for key in ("noise", "invert_steps", "decode_steps", "official")) == expected
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["diti:sampler"] == ("official" if expected[3] else "own")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("missing.png", "b.png"), DataError, "missing.png does not exist"),
        ((".", "b.png"), DataError, "is a folder"),
        (("faces:x", "b.png"), ConfigError, "faces:x"),
        (("a.png", "b.png", "--alphas", "0:1"), ConfigError, "0:1"),
        (("a.png", "b.png", "--noise", "loud"), ConfigError, "loud"),
        (("a.png", "b.png", "-o", "out.jpg"), ConfigError, "out.jpg"),
        (("a.png", "b.png", "-o", "a.png"), ConfigError, "one of the images"),
        (("a.png", "b.png", "-o", "b.png/out.png"), DataError, "b.png"),
        (("a.png", "b.png", "--separate", "a.png"), DataError, "a.png"),
        (("a.png", "b.png", "-o", "/proc/out.png"), DataError, "/proc"),
        (("a.png", "b.png", "-o", "."), DataError, "-o names a folder"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(command, photos, monkeypatch, arguments, error, says):
    monkeypatch.chdir(photos[0].parent)
    result = command(*arguments)
    assert isinstance(result.exception, error)
    assert says in str(result.exception)
    assert result.exception.remedy
    assert result.loaded == []


def test_chunks_outside_the_model_and_unreadable_images(command, photos, tmp_path):
    result = command(*photos, "--chunks", "2-4", "-o", tmp_path / "out.png")
    assert isinstance(result.exception, ChunkError)
    assert "0-3" in str(result.exception)
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(photos[0]).read_bytes()[:45])
    result = command(photos[0], broken, "-o", tmp_path / "out.png")
    assert isinstance(result.exception, DataError)
    assert "broken.png" in str(result.exception)
    assert not (tmp_path / "out.png").exists()
