"""Batch encoding on a fake source: order, skipped images, interruption, wrong encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from diticli.chunks import ChunkLayout
from diticli.commands.encode import encode
from diticli.commands.probe import probe
from diticli.data.images import UnreadableImageError
from diticli.editing import quality
from diticli.editing.reconstruct import reconstruct
from diticli.encoding import encode as encode_module
from diticli.encoding import inputs
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.encoding.encode import EncodeResult, _batches, encode_images
from diticli.errors import DataError, DiTiError, FeatureFileError, ModelError
from diticli.features.read import FeatureMeta, read_features
from diticli.progress import SilentReporter


class FakeImages:
    """Image i is filled with i, but for the unreadable ones."""

    name = "fake"
    resolution = 4
    threads = True
    crop = "center"

    def __init__(self, count: int, bad: set[int] | None = None) -> None:
        self.count, self.bad = count, bad or set()
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def file_name(self, index: int) -> str:
        return f"{index:03d}.png"

    def load(self, index: int) -> np.ndarray:
        self.loaded.append(index)
        if index in self.bad:
            raise UnreadableImageError(self.file_name(index), "truncated")
        return np.full((4, 4, 3), index, np.uint8) + np.arange(3, dtype=np.uint8)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "fake", "count": self.count}


class Recorder(SilentReporter):
    def __init__(self) -> None:
        self.total: int | None = 0
        self.done = 0
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        self.total, self.done = total, done

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        self.done += amount

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def channel_means(images: torch.Tensor) -> torch.Tensor:
    assert images.dtype == torch.uint8
    assert images.shape[1:] == (3, 4, 4)
    return images.float().mean(dim=(2, 3))


def run(out: Path, source: FakeImages, **options: Any) -> EncodeResult:
    encode = options.pop("encode", channel_means)
    facts = {"model": "m", "model_hash": "h", "preprocessing": {"resolution": source.resolution}}
    names = ("model_hash", "preprocessing", "chunk_ends", "timestep_ends")
    facts |= {name: options.pop(name) for name in names if name in options}
    return encode_images(encode, source, out, meta=FeatureMeta(files=(), **facts), **options)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_rows_follow_the_source_without_the_bad_ones(tmp_path: Path, workers: int, batch_size: int) -> None:
    out, reporter = tmp_path / "feats.npy", Recorder()
    source = FakeImages(22, bad={0, 5, 6, 21})
    result = run(out, source, workers=workers, batch_size=batch_size, reporter=reporter)
    good = [i for i in range(22) if i not in source.bad]
    features = read_features(out)
    np.testing.assert_array_equal(features.values, np.array(good)[:, None] + np.arange(3))
    assert features.meta is not None
    assert features.meta.files == tuple(f"{i:03d}.png" for i in good)
    assert [(s.file, s.reason) for s in features.meta.skipped] == [
        (f"{i:03d}.png", "truncated") for i in sorted(source.bad)
    ]
    assert (result.rows, result.dim, result.resumed, len(result.skipped)) == (18, 3, 0, 4)
    assert result.images_per_second > 0
    assert reporter.total == reporter.done == 22
    assert len(reporter.warnings) == 1
    assert "4 of 22 images" in reporter.warnings[0]
    assert "000.png: truncated" in reporter.warnings[0]


def test_metadata(tmp_path: Path) -> None:
    out = tmp_path / "feats.parquet"
    run(out, FakeImages(3), chunk_ends=(1, 3), timestep_ends=(5, 9), preprocessing={"resolution": 4, "x": 1})
    meta = read_features(out).meta
    assert meta is not None
    assert (meta.model, meta.model_hash, meta.chunk_ends, meta.timestep_ends) == ("m", "h", (1, 3), (5, 9))
    assert meta.preprocessing == {"resolution": 4, "x": 1}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, stop: type[BaseException], suffix: str) -> None:
    calls = 0

    def interrupted(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise stop
        return channel_means(images)

    out, whole = tmp_path / f"part{suffix}", tmp_path / f"whole{suffix}"
    bad = {2, 9, 17}
    with pytest.raises(stop):
        run(out, FakeImages(20, bad), batch_size=4, encode=interrupted)
    assert not out.exists()
    journal = json.loads((tmp_path / f"part{suffix}.partial.json").read_text())
    assert (journal["consumed"], journal["rows"]) == (9, 8)
    source, reporter = FakeImages(20, bad), Recorder()
    result = run(out, source, batch_size=4, reporter=reporter, workers=0)
    assert result.resumed == 9
    assert min(source.loaded) == 9
    assert reporter.total == reporter.done == 20
    assert "after 9 of 20" in reporter.notes[0]
    run(whole, FakeImages(20, bad), batch_size=4)
    resumed, uninterrupted = read_features(out), read_features(whole)
    np.testing.assert_array_equal(resumed.values, uninterrupted.values)
    assert resumed.meta is not None
    assert uninterrupted.meta is not None
    assert resumed.meta.files == uninterrupted.meta.files
    assert resumed.meta.skipped == uninterrupted.meta.skipped
    assert not list(tmp_path.glob("*.partial*"))


def stop_after_two(out: Path, **options: Any) -> None:
    calls = 0

    def encode(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return channel_means(images)

    with pytest.raises(KeyboardInterrupt):
        run(out, FakeImages(12), batch_size=2, encode=encode, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"model_hash": "other"},
        {"preprocessing": {"resolution": 4, "crop": 1}},
        {"source": FakeImages(13)},
        {"resume": False},
    ],
)
def test_a_partial_file_of_something_else_is_not_continued(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "feats.npy"
    stop_after_two(out)
    source, reporter = change.pop("source", FakeImages(12)), Recorder()
    result = run(out, source, reporter=reporter, **change)
    assert result.resumed == 0
    assert result.rows == len(source)
    assert bool(reporter.warnings) == ("resume" not in change)


def test_periodic_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "feats.npy"
    seen: list[int] = []

    def watching(images: torch.Tensor) -> torch.Tensor:
        journal = tmp_path / "feats.npy.partial.json"
        seen.append(json.loads(journal.read_text())["rows"] if journal.exists() else 0)
        return channel_means(images)

    run(out, FakeImages(6), batch_size=2, encode=watching, checkpoint_seconds=0)
    assert seen == [0, 2, 4]


def test_nothing_readable_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None of the 4 images") as caught:
        run(tmp_path / "feats.npy", FakeImages(4, bad={0, 1, 2, 3}))
    assert "and 1 more" in caught.value.message
    with pytest.raises(DataError, match="no images"):
        run(tmp_path / "feats.npy", FakeImages(0))
    with pytest.raises(DataError, match="batch"):
        run(tmp_path / "feats.npy", FakeImages(2), batch_size=0)
    assert list(tmp_path.iterdir()) == []


def test_encoders_that_misbehave(tmp_path: Path) -> None:
    def nan(images: torch.Tensor) -> torch.Tensor:
        features = channel_means(images)
        features[1, 0] = float("nan")
        return features

    out = tmp_path / "feats.npy"
    with pytest.raises(ModelError, match=r"001\.png"):
        run(out, FakeImages(3), encode=nan)
    for wrong in (lambda x: channel_means(x)[:1], lambda x: channel_means(x)[:, 0]):
        with pytest.raises(ModelError, match="for 3 images"):
            run(out, FakeImages(3), encode=wrong)
    assert not out.exists()


def test_unknown_suffix_before_any_work(tmp_path: Path) -> None:
    source = FakeImages(3)
    with pytest.raises(FeatureFileError):
        run(tmp_path / "feats.txt", source)
    assert source.loaded == []


@pytest.fixture
def command(make_pipeline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """(*arguments) -> what `encode` did with a tiny model; `.asked` and `.pipeline` beside it."""
    asked: list[tuple[str | None, str | None]] = []

    def load(model: str | None, device: str | None) -> Any:
        asked.append((model, device))
        return invoke.pipeline  # type: ignore[attr-defined]

    monkeypatch.setattr("diticli.models.load.load_model", load)
    app = typer.Typer()
    app.command()(encode)

    def invoke(*arguments: object) -> Any:
        return CliRunner().invoke(app, [*map(str, arguments), "--model", "m", "--device", "cpu"])

    def use(pipeline: Any) -> None:
        invoke.pipeline = pipeline  # type: ignore[attr-defined]

    invoke.asked, invoke.use, invoke.pipeline = asked, use, make_pipeline()  # type: ignore[attr-defined]
    return invoke


def test_command(tmp_path: Path, command: Any) -> None:
    pictures = [Image.new("RGB", (9, 6), (40 * i, 50, 100)) for i in range(5)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    (tmp_path / "bad.jpg").write_bytes(b"")
    out = tmp_path / "out" / "feats.npz"
    result = command(tmp_path, "-o", out, "--batch-size", 2, "--precision", "fp32", "--json")
    assert result.exit_code == 0, result.output
    assert command.asked == [("m", "cpu")]
    shown = json.loads(result.stdout)
    assert (shown["rows"], shown["dim"], shown["out"]) == (5, 16, str(out))
    assert shown["skipped"][0]["file"] == "bad.jpg"
    features = read_features(out)
    np.testing.assert_allclose(features.values, command.pipeline.encode(pictures), rtol=1e-5, atol=1e-6)
    assert features.meta is not None
    assert features.meta.chunk_ends == command.pipeline.chunks.ends
    assert (features.meta.preprocessing["resolution"], features.meta.preprocessing["precision"]) == (16, "fp32")
    result = command(tmp_path, "-o", tmp_path / "x.csv")
    assert isinstance(result.exception, FeatureFileError)
    assert len(command.asked) == 1


def test_command_says_how_pictures_are_read_and_warns_of_strange_ones(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        Image.new("RGB", (9, 6 + 3 * i), (40 * i, 50, 100)).save(tmp_path / f"{i}.png")
    out = tmp_path / "feats.npy"
    command.pipeline.usual_psnr, command.pipeline.trained_on = 900.0, "cats"
    result = command(tmp_path, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    shown, meta = json.loads(result.stdout), read_features(out).meta
    assert meta is not None
    assert shown["inputs"] == meta.inputs == "3 images: 9x6 to 9x12 -> centre square -> 16 px or -> 16 px."
    assert meta.inputs in result.stderr
    (warning,) = shown["warnings"]
    assert meta.warnings == (warning,)
    assert f"Warning: {warning}" in result.stderr
    assert "900.0 dB is usual for this model" in warning
    assert "such as cats. (2 of 3 images were decoded" in warning
    report = CliRunner().invoke(probing(), [str(out), "-o", str(tmp_path / "probe")])
    assert warning in report.stderr, "the probe repeats it"
    assert json.loads((tmp_path / "probe" / "report.json").read_text())["warnings"] == [warning]
    steps: list[int] = []

    def looking(*given: Any, **settings: Any) -> Any:
        steps.append(settings["settings"].decode_steps)
        return reconstruct(*given, **settings)

    monkeypatch.setattr(inputs, "reconstruct", looking)

    def warnings(*sources: object) -> list[str]:
        steps.clear()
        found: list[str] = json.loads(command(*sources, "-o", tmp_path / "more.npy", "--json").stdout)["warnings"]
        return found

    assert warnings(tmp_path / "0.png", tmp_path / "1.png") == steps == [], "fewer than can be probed"
    assert len(warnings(tmp_path)) == 1
    assert steps == [10, 20]
    command.pipeline.usual_psnr = None
    monkeypatch.setattr(quality, "LEAST_PSNR", 0.0)
    assert warnings(tmp_path) == []
    assert steps == [10], "what comes back well in few steps needs no more"
    command.pipeline.usual_psnr, command.pipeline.trained_on = 900.0, "built-in faces"
    assert warnings("faces:3") == steps == []


def probing() -> typer.Typer:
    """The probe command, alone."""
    app = typer.Typer()
    app.command()(probe)
    return app


def test_command_writes_a_folder_of_shards(tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "feats"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, complete in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        result = command("faces:5:0", "-o", out, "--shard-size", 2, "--format", "parquet", "--json")
        assert result.exit_code == 0, result.output
        assert (out / "features.json").exists() == complete
    shown = json.loads(result.stdout)
    assert (shown["rows"], shown["dim"], shown["units"], shown["own"]) == (5, 16, 3, 3)
    monkeypatch.delenv("WORLD_SIZE")
    assert command("faces:5:0", "-o", tmp_path / "feats.npy").exit_code == 0
    whole, shards = read_features(tmp_path / "feats.npy"), read_features(out)
    np.testing.assert_allclose(np.asarray(shards.values), whole.values, rtol=0, atol=1e-6)  # batches differ
    assert shards.meta is not None
    assert whole.meta is not None
    assert tuple(shards.meta.files) == whole.meta.files
    assert (shards.meta.chunk_ends, shards.meta.preprocessing) == (whole.meta.chunk_ends, whole.meta.preprocessing)
    assert shards.meta.created
    again = command("faces:5:0", "-o", out, "--shard-size", 2, "--format", "parquet")
    assert "Wrote 5 rows of 16 features" in again.stderr


def test_the_layout_of_the_model_is_read_from_its_features(
    tmp_path: Path, command: Any, make_pipeline: Callable[..., Any], layout: ChunkLayout
) -> None:
    """Also what a timestep sees, which is not a prefix for every model."""
    command.use(make_pipeline(chunk_layout=layout.to_dict() | {"visible": "all"}))
    assert command("faces:3:0", "-o", tmp_path / "feats.npy").exit_code == 0
    assert command("faces:3:0", "-o", tmp_path / "feats", "--shard-size", 2).exit_code == 0
    for name in ("feats.npy", "feats"):
        meta = read_features(tmp_path / name).meta
        assert meta is not None
        assert meta.layout == replace(layout, visible="all")


@pytest.mark.parametrize(
    ("world", "arguments", "message"),
    [
        ("1", ["-o", "feats.npy", "--shard-size", "5"], "is one file"),
        ("1", ["-o", "feats.csv"], "no known feature format"),
        ("2", ["-o", "feats.npy"], "cannot write one file"),
        ("2", ["-", "-o", "feats"], "cannot share one stdin"),
    ],
)
def test_outputs_that_cannot_be(
    command: Any, monkeypatch: pytest.MonkeyPatch, world: str, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", "0")
    error = command("faces:5:0", *arguments).exception
    assert isinstance(error, DiTiError)
    assert message in error.message
    assert error.remedy
    assert command.asked == []


def test_rows_of_another_precision_are_not_continued(tmp_path: Path, command: Any) -> None:
    out = tmp_path / "feats.npy"
    encode_on_first = command.pipeline.encoder.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(command.pipeline.encoder), "forward", _failing_after(2, encode_on_first))
        assert isinstance(command("faces:8:0", "-o", out, "--batch-size", 2, "--precision", "fp32").exception, OSError)
    result = command("faces:8:0", "-o", out, "--batch-size", 2, "--precision", "bf16", "--json")
    assert json.loads(result.stdout)["resumed"] == 0
    features = read_features(out)
    assert features.meta is not None
    assert features.meta.preprocessing["precision"] == "bf16"


def _failing_after(calls: int, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(self: Any, images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise OSError("unplugged")
        return function(images)

    return forward


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_is_one_graph_for_a_compiler(precision: Any, make_pipeline: Any) -> None:
    encoder = BatchEncoder(make_pipeline().encoder, precision)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(encoder._features, fullgraph=True, backend="eager")(images)
    torch.testing.assert_close(compiled, encoder(images), rtol=0, atol=1e-5 if precision == "fp32" else 0.02)


def test_batch_encoder_is_the_encoder(make_pipeline: Callable[..., Any]) -> None:
    pipeline = make_pipeline()
    before = {name: value.clone() for name, value in pipeline.encoder.state_dict().items()}
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    wanted = pipeline.encode_uint8(images)
    exact, rough = (BatchEncoder(pipeline.encoder, precision)(images) for precision in ("fp32", "bf16"))
    torch.testing.assert_close(exact, wanted, rtol=1e-5, atol=1e-6)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = pipeline.encode_uint8(images)
    # Its error must not exceed that of the autocast under which such an encoder was trained, but for chance.
    assert (rough - wanted).norm() < 1.5 * (autocast - wanted).norm()
    after = pipeline.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert not pipeline.encoder.head._forward_pre_hooks
    assert all(p.requires_grad for p in pipeline.encoder.parameters())


def test_what_was_computed_is_written_whatever_ends_the_run(tmp_path: Path) -> None:
    """The order of a GPU, one batch ahead of the file, on a CPU that poses as one."""
    rows, waiting = [], []

    class Rows:
        def take(self, batch: Any, arriving: Any) -> None:
            rows.append(batch.files)

    def encode(images: torch.Tensor) -> torch.Tensor:
        waiting.append(len(rows))
        if len(waiting) == 4:
            raise KeyboardInterrupt
        return channel_means(images)

    class Device:
        type = "cuda"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "upload", lambda tensor, device: tensor)
        batches = _batches(FakeImages(10), range(10), 2, 0)
        with pytest.raises(KeyboardInterrupt):
            encode_module._encode_all(encode, batches, Rows(), Device())  # type: ignore[arg-type]
    assert waiting == [0, 0, 1, 2], "each batch is launched before the one ahead of it is waited for"
    assert rows == [[f"{i:03d}.png", f"{i + 1:03d}.png"] for i in (0, 2, 4)]
