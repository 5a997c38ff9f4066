"""Training end to end at the smallest size: resume, determinism, faults, artefacts."""

from __future__ import annotations

import json
import os
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diticli.config import RunConfig
from diticli.errors import CheckpointError, ConfigError, DataError, ModelError, TrainingDivergedError
from diticli.models.locate import load_pipeline
from diticli.progress import SilentReporter
from diticli.settings import build_config
from diticli.training.checkpoint import list_checkpoints, load_checkpoint, sealed
from diticli.training.run import train
from diticli.training.rundir import RunDirectory
from diticli.training.stopping import TrainingInterrupted

TINY = (
    "data.resolution=16",
    "data.faces_count=40",
    "unet.channels=8,16",
    "unet.norm_groups=4",
    "unet.attention_sizes=[8]",
    "encoder.widths=32,32",
    "encoder.attention_size=8",
    "chunks.count=4",
    "chunks.partition=uniform",
    "chunks.latent_dim=16",
    "base.images=40",
    "base.batch_size=8",
    "base.warmup_images=16",
    "features.images=64",
    "features.batch_size=8",
    "precision=fp32",
    "device=cpu",
    "log_every=1",
    "checkpoint_every=3",
    "sample_every=0",
)


def tiny(*more: str, **options: object) -> RunConfig:
    return build_config("faces32", options=options, assignments=(*TINY, *more))


def losses(run: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"]) for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    parts = ("encoder", "shift_decoder", "unet")
    return {
        f"{part}.{name}": value
        for part in parts
        for name, value in load_file(run / "model" / part / "diffusion_pytorch_model.safetensors").items()
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class StopAfter(SilentReporter):
    """Sends this process a signal once so many images of a stage were reported."""

    def __init__(self, stage: str, images: int, number: int = signal.SIGINT) -> None:
        self.stage, self.images, self.number = stage, images, number
        self.title, self.done = "", 0

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        self.title, self.done = title, done

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        self.done += amount
        if self.title == f"Stage {self.stage}" and self.done == self.images:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "reference"
    train(tiny(), run)
    return run


def test_run_directory_holds_what_the_readme_says(reference: Path) -> None:
    saved = json.loads((reference / "config.json").read_text())
    assert saved["config"]["chunks"]["count"] == 4
    assert saved["versions"]["torch"] == version("torch")
    assert (reference / "base" / "unet" / "config.json").is_file()
    assert (reference / "model" / "model_index.json").is_file()
    assert not list_checkpoints(reference / "checkpoints")
    assert list((reference / "tensorboard").iterdir())
    assert [(stage, step) for stage, step, _ in losses(reference)] == [
        *(("base", s) for s in range(1, 6)),
        *(("features", s) for s in range(1, 9)),
    ]


def test_same_seed_is_the_same_run(reference: Path, tmp_path: Path) -> None:
    train(tiny(), tmp_path / "again")
    assert losses(tmp_path / "again") == losses(reference)
    assert same(weights(tmp_path / "again"), weights(reference))


def test_other_seed_is_another_run(reference: Path, tmp_path: Path) -> None:
    train(tiny("seed=1"), tmp_path / "other")
    assert losses(tmp_path / "other") != losses(reference)


@pytest.mark.parametrize(("stage", "images"), [("base", 16), ("features", 24), ("features", 40)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_goes_on_bit_for_bit(
    reference: Path, tmp_path: Path, stage: str, images: int, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted, match="everything is saved"):
        train(tiny(), run, reporter=StopAfter(stage, images, number))
    assert len(list_checkpoints(run / "checkpoints")) >= 1
    train(tiny(), run)
    assert losses(run) == losses(reference)
    assert same(weights(run), weights(reference))


def test_lost_steps_after_a_checkpoint_are_done_again(reference: Path, tmp_path: Path) -> None:
    """A kill between checkpoints: the journal holds later lines, the newest checkpoint is older."""
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("features", 40))
    newest = list_checkpoints(run / "checkpoints")[-1]
    assert newest.name == "step-00000005"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    with (run / "metrics.jsonl").open("a") as journal:
        journal.write('{"stage": "features", "st')
    train(tiny(), run)
    assert losses(run) == losses(reference)
    assert same(weights(run), weights(reference))


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny("checkpoint_every=1"), run, reporter=StopAfter("base", 32))
    assert [p.name for p in list_checkpoints(run / "checkpoints")] == ["step-00000003", "step-00000004"]


def test_killed_between_publishing_the_base_and_tidying_up(reference: Path, tmp_path: Path) -> None:
    """Checkpoints of stage 1 have higher steps than stage 2's first: they must not push those out."""
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("base", 32))
    stale = tmp_path / "stale"
    shutil.copytree(run / "checkpoints", stale)
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("features", 8))
    shutil.copytree(stale, run / "checkpoints", dirs_exist_ok=True)
    for path in (run / "checkpoints").glob("step-00000001"):
        shutil.rmtree(path)
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("features", 16))
    assert [p.name for p in list_checkpoints(run / "checkpoints")] == ["step-00000002"]
    train(tiny(), run)
    assert losses(run) == losses(reference)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("base", 16))
    file = list_checkpoints(run / "checkpoints")[-1] / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        train(tiny(), run)


def test_finished_run_is_not_overwritten(reference: Path) -> None:
    with pytest.raises(ConfigError, match="finished run"):
        train(tiny(), reference)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"config": 1, "data": {}}', '{"config": {}}', '{"config": ' + "[" * 100_000]
)
def test_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is damaged") as error:
        RunDirectory(tmp_path).open(tiny(), {})
    assert "another --out" in error.value.remedy


def test_unknown_attention_is_named_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITI_ATTENTION", "flash")
    with pytest.raises(ConfigError, match="DITI_ATTENTION='flash' is unknown"):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("base", 16))
    with pytest.raises(ConfigError, match=r"features\.learning_rate was 0\.0005, now 0\.1"):
        train(tiny("features.learning_rate=0.1"), run)
    train(tiny("log_every=5"), run)  # what changes only how a run reports may change


def test_changed_images_do_not_resume(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full((20, 20, 3), i * 20, np.uint8)).save(folder / f"{i}.png")
    config = tiny(**{"data.source": str(folder)})
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path / "run", reporter=StopAfter("base", 16))
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "new.png")
    with pytest.raises(DataError, match="images changed"):
        train(config, tmp_path / "run")


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not a run"):
        train(tiny(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_diverged_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("base", 16))
    good = list_checkpoints(run / "checkpoints")[-1]
    poisoned = load_checkpoint(good)
    tensors = {name: value.clone() for name, value in poisoned.tensors["weights"].items()}
    tensors["unet.conv_out.bias"].fill_(float("nan"))
    _rewrite(good, "weights", tensors)
    with pytest.raises(TrainingDivergedError, match="became nan"):
        train(tiny("log_every=100"), run)
    assert [p.name for p in list_checkpoints(run / "checkpoints")] == [good.name]


def _rewrite(checkpoint: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    import hashlib

    path = checkpoint / f"{name}.safetensors"
    save_file(tensors, path)
    state = json.loads((checkpoint / "state.json").read_text())
    state["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(sealed(state)))


def test_given_base_is_used_and_never_changes(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny("features.images=16", base_model=str(reference)), run)
    assert not (run / "base").exists()
    before = load_file(reference / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    after = {k.removeprefix("unet."): v for k, v in weights(run).items() if k.startswith("unet.")}
    assert same(before, after)


def test_base_of_another_resolution_is_refused(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trained at 16 px, the run wants 32 px"):
        train(tiny("data.resolution=32", base_model=str(reference)), tmp_path / "run")


@pytest.mark.parametrize("gradient", ["detached", "dual"])
def test_gradient_modes_train(reference: Path, tmp_path: Path, gradient: str) -> None:
    run = tmp_path / gradient
    train(tiny("features.images=16", gradient=gradient, base_model=str(reference)), run)
    assert all(np.isfinite(loss) for _, _, loss in losses(run))


def test_a_run_whose_time_steps_see_everything(reference: Path, tmp_path: Path) -> None:
    """It learns something else than with prefixes, and the finished model knows what its time-steps see."""
    seen, learned = {}, {}
    for visible in ("prefix", "all"):
        run, options = tmp_path / visible, {"gradient": "detached", "base_model": str(reference)}
        train(tiny("features.images=64", f"chunks.visible={visible}", **options), run)
        layout = load_pipeline(str(run), "cpu").chunks
        seen[visible], learned[visible] = layout.visible_dims()[0].tolist(), weights(run)
        assert layout.visible == visible
    assert seen["prefix"] == [0, layout.ends[0]]
    assert seen["all"] == [0, layout.latent_dim]
    assert not same(*learned.values())


def test_everything_visible_needs_gradients_that_tell_chunks_apart() -> None:
    with pytest.raises(ConfigError, match="no dim belongs to a time-step") as caught:
        tiny("chunks.visible=all")
    assert "--gradient detached" in str(caught.value.remedy)


def test_streamed_images_give_the_same_run(reference: Path, tmp_path: Path) -> None:
    """Data too large for memory is decoded by workers, in the same order."""
    run = tmp_path / "stream"
    train(tiny("data.memory_limit_mb=0", "data.workers=1"), run)
    assert losses(run) == losses(reference)


def test_samples_and_charts_are_drawn(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny("sample_every=8", "features.images=64", base_model=str(reference)), run)
    names = {p.name for p in (run / "samples").iterdir()}
    assert names == {"features-00000008.png", "features-loss-by-timestep.png"}
    with Image.open(run / "samples" / "features-00000008.png") as picture:
        assert picture.width > 8 * 16


def test_sampling_does_not_disturb_training(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny("sample_every=2"), run)
    assert losses(run) == losses(reference)
    assert same(weights(run), weights(reference))


@pytest.mark.parametrize("memory", [4096, 0])
def test_unreadable_images_are_skipped_and_listed(tmp_path: Path, memory: int) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(30):
        Image.fromarray(np.full((20, 20, 3), i * 8, np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "07.png").write_bytes(b"")
    config = tiny(f"data.memory_limit_mb={memory}", **{"data.source": str(folder)})
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / "skipped.txt").read_text().startswith("07.png\t")
    for i in (1, 2, 3):
        (folder / f"{i:02d}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"more than 5%.*skipped\.txt"):
        train(config, tmp_path / "worse")


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    from accelerate import Accelerator

    from diticli.errors import ConfigError
    from diticli.settings import build_config
    from diticli.training.run import make_accelerator, resolve

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    config = resolve(build_config(preset="faces32", assignments=("base.batch_size=8",)))
    with pytest.raises(ConfigError, match="batch_size 8 cannot be shared by 3 processes"):
        make_accelerator(config)
