"""Training end to end at the smallest size: resume, determinism, faults, artefacts."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from diticli.config import RunConfig
from diticli.errors import CheckpointError, ConfigError, DataError, DeviceError, ModelError, TrainingDivergedError
from diticli.models.load import load_pipeline
from diticli.models.pipeline import DiTiPipeline
from diticli.progress import SilentReporter
from diticli.settings import build_config
from diticli.training import loop, samples
from diticli.training.checkpoint import list_checkpoints, load_checkpoint, not_finite, sealed
from diticli.training.loop import StageTrainer
from diticli.training.plan import make_plan
from diticli.training.run import train
from diticli.training.rundir import RunDirectory
from diticli.training.stage import Stage, learning_rate
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
    assert [path.name for path in list_checkpoints(reference / "checkpoints")] == ["step-00000008"]
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
    """A kill between checkpoints: metrics.jsonl holds later lines, the newest checkpoint is older."""
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


def test_finished_run_is_not_overwritten(reference: Path, tmp_path: Path) -> None:
    """The same command has nothing to do, and cleans up after a kill that came just when the model was published."""
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    left = run / "checkpoints" / "step-00000006"
    left.mkdir(parents=True)
    (left / "state.json").write_text("{}")
    before = weights(run)
    assert train(tiny(), run) == run / "model"
    assert same(weights(run), before)
    assert losses(run) == losses(reference)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000008"]
    with pytest.raises(ConfigError, match="holds a finished run that was started with other settings: seed was 0"):
        train(tiny("seed=1"), run)


def test_a_finished_run_goes_on_with_more_images(tmp_path: Path) -> None:
    """At a constant learning rate it becomes, bit for bit, the run that had these images from the beginning."""
    constant = ("features.decay=constant", "features.warmup_images=0")
    longer = (*constant, "features.images=112")
    train(tiny(*longer), tmp_path / "whole")
    run = tmp_path / "run"
    train(tiny(*constant), run)
    before = weights(run)
    with pytest.raises(TrainingInterrupted):
        train(tiny(*longer), run, reporter=StopAfter("features", 88))
    assert same(weights(run), before), "the earlier model stays until the longer one is there"
    assert not RunDirectory(run).finished
    assert train(tiny(*longer), run) == run / "model"
    assert same(weights(run), weights(tmp_path / "whole"))
    assert losses(run) == losses(tmp_path / "whole")
    assert RunDirectory(run).finished
    assert json.loads((run / "config.json").read_text())["config"]["features"]["images"] == 112
    train(tiny(*longer), run)
    with pytest.raises(ConfigError, match=r"features\.images was 112, now 64"):
        train(tiny(*constant), run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConfigError, match="cannot go on to 200 images: its last checkpoint is gone"):
        train(tiny(*constant, "features.images=200"), run)


def test_an_extended_cosine_is_that_of_the_longer_run_from_then_on(reference: Path, tmp_path: Path) -> None:
    run, longer = tmp_path / "run", tiny("features.images=128")
    shutil.copytree(reference, run)
    train(longer, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if line["stage"] == "features"}
    assert list(rates) == list(range(1, 17))
    assert [rates[step] for step in range(9, 17)] == [learning_rate(longer.features, step) for step in range(8, 16)]


def test_a_run_without_a_step_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a batch that did not fit: one line, and a smaller batch may use the same folder."""
    run, train_step = tmp_path / "run", StageTrainer.train_step

    def fail(self: StageTrainer, inputs: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 9 bytes.")

    monkeypatch.setattr(StageTrainer, "train_step", fail)
    with pytest.raises(DeviceError, match=r"A batch of 16 images does not fit in memory \(DefaultCPU") as caught:
        train(tiny("base.batch_size=16"), run)
    assert caught.value.remedy == "Use --batch-size 15, which fits by measurement."
    monkeypatch.setattr(StageTrainer, "train_step", train_step)
    train(tiny(), run)
    assert json.loads((run / "config.json").read_text())["config"]["base"]["batch_size"] == 8


@pytest.mark.parametrize("way", ["copied anew", "moved"])
def test_the_same_images_elsewhere_resume(tmp_path: Path, way: str) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for i in range(12):
        Image.fromarray(np.full((20, 20, 3), i * 20, np.uint8)).save(photos / f"{i}.png")
    with pytest.raises(TrainingInterrupted):
        train(tiny(**{"data.source": str(photos)}), run, reporter=StopAfter("base", 16))
    moved = tmp_path / "job-4711"
    shutil.copytree(photos, moved, copy_function=shutil.copyfile)
    if way == "copied anew":
        shutil.rmtree(photos)
        moved = moved.rename(photos)
    train(tiny(**{"data.source": str(moved)}), run)
    assert [step for stage, step, _ in losses(run) if stage == "base"] == [1, 2, 3, 4, 5]


def test_other_pixels_of_the_same_size_and_name_do_not_resume(tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for i in range(12):
        Image.fromarray(np.full((20, 20, 3), i * 20, np.uint8)).save(photos / f"{i}.bmp")
    with pytest.raises(TrainingInterrupted):
        train(tiny(**{"data.source": str(photos)}), run, reporter=StopAfter("base", 16))
    Image.fromarray(np.full((20, 20, 3), 7, np.uint8)).save(photos / "3.bmp")
    with pytest.raises(DataError, match="names, sizes or content of files differ"):
        train(tiny(**{"data.source": str(photos)}), run)


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
    with pytest.raises(ConfigError, match=r"features\.learning_rate was 0\.001, now 0\.1"):
        train(tiny("features.learning_rate=0.1"), run)
    train(tiny("log_every=5"), run)  # what changes only how a run reports may change


def test_a_run_of_a_version_without_a_setting_resumes(tmp_path: Path) -> None:
    """`minutes` came later: runs begun before know nothing of it, neither their config nor their checkpoints."""
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("base", 16))
    path = run / "config.json"
    saved = json.loads(path.read_text())
    del saved["config"]["minutes"]
    path.write_text(json.dumps(saved))
    train(tiny(), run)
    assert RunDirectory(run).finished


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


def poison_gradients(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float = float("nan")) -> None:
    """One gradient of the base's steps (zero-based) `steps` is `value`; the loss is finite."""
    draw = loop.draw_inputs

    def drawn(stage: Stage, noise: object, views: object, step: int, *others: Any) -> object:
        if stage.name == "base" and step in steps:
            parameter = next(p for p in stage.objective.parameters() if p.requires_grad)
            handle = parameter.register_hook(lambda grad: (handle.remove(), grad * value)[1])
        return draw(stage, noise, views, step, *others)

    monkeypatch.setattr(loop, "draw_inputs", drawn)


class Warnings(SilentReporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, message: str) -> None:
        self.texts.append(message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, clip: float
) -> None:
    """One of 20 steps is skipped, counted and reported; the others are those of a run without that step's update."""
    run, reporter = tmp_path / "run", Warnings()
    poison_gradients(monkeypatch, {2}, value)
    more = ("base.images=160", "features.images=8", f"base.grad_clip={clip}", "log_every=2")
    train(tiny(*more), run, reporter=reporter)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped_steps") == 1] == [4]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert [text for text in reporter.texts if "1 step(s) of stage base up to step 3" in text]
    assert all(value.isfinite().all() for value in weights(run).values())


def test_a_skipped_step_changes_neither_weights_nor_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_gradients(monkeypatch, {2})
    with pytest.raises(TrainingInterrupted):
        train(tiny("checkpoint_every=1", "base.images=320"), tmp_path / "run", reporter=StopAfter("base", 24))
    before, after = (load_checkpoint(path).tensors for path in list_checkpoints(tmp_path / "run" / "checkpoints"))
    assert same(before["weights"], after["weights"])
    assert same(before["optimizer"], after["optimizer"])
    assert after["totals"]["skipped"] == 1


def test_diverged_loss_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All gradients from the third step on are NaN while the loss is finite: every file that is left is finite."""
    run, reporter = tmp_path / "run", Warnings()
    poison_gradients(monkeypatch, set(range(2, 40)))
    for _ in range(2):  # again from the last checkpoint
        with pytest.raises(TrainingDivergedError, match="gradients of 10 steps in a row were not finite"):
            train(tiny("base.images=320", "log_every=3"), run, reporter=reporter)
        kept = list_checkpoints(run / "checkpoints")
        assert kept
        assert not [path for path in kept if not_finite(load_checkpoint(path).tensors)]
    assert not (run / "base").exists()
    assert any("3 step(s)" in text for text in reporter.texts)


def test_a_stage_with_many_skipped_steps_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_gradients(monkeypatch, {1, 4})
    with pytest.raises(TrainingDivergedError, match="gradients of 2 of 5 steps were not finite"):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "base").exists()


def test_a_poisoned_checkpoint_is_named_and_one_is_never_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny("checkpoint_every=1"), run, reporter=StopAfter("base", 24))
    _, poisoned = list_checkpoints(run / "checkpoints")
    tensors = {name: value.clone() for name, value in load_checkpoint(poisoned).tensors["weights"].items()}
    tensors["unet.conv_out.bias"].fill_(float("nan"))
    _rewrite(poisoned, "weights", tensors)
    with pytest.raises(CheckpointError, match=r"not finite \(weights: unet\.conv_out\.bias\)") as caught:
        train(tiny("checkpoint_every=1"), run)
    assert f"Delete {poisoned}" in caught.value.remedy
    shutil.rmtree(poisoned)
    train(tiny("checkpoint_every=1"), run)


def test_the_host_waits_for_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two log lines nothing is read from the device: neither the loss nor whether gradients are finite."""
    reads, train_step = [], StageTrainer.train_step

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "") in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu"):
                reads.append(function)
            return function(*args, **(kwargs or {}))

    def watched(self: StageTrainer, inputs: object) -> None:
        with Watch():
            train_step(self, inputs)

    monkeypatch.setattr(StageTrainer, "train_step", watched)
    train(tiny(), tmp_path / "run")
    assert not reads


def test_tensorboard_shows_each_step_once_after_a_resume(reference: Path, tmp_path: Path) -> None:
    """A checkpoint at step 3, a crash after step 4: steps 4 and 5 are written once more, and shown once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny("checkpoint_every=2"), run, reporter=StopAfter("features", 40))
    shutil.rmtree(list_checkpoints(run / "checkpoints")[-1])  # as if it had been killed before writing it
    train(tiny("checkpoint_every=2"), run)
    shown = {}
    for stage in ("base", "features"):
        events = EventAccumulator(str(run / "tensorboard" / stage))
        events.Reload()
        shown[stage] = [(stage, event.step) for event in events.Scalars(f"{stage}/loss")]
    assert shown["base"] + shown["features"] == [(stage, step) for stage, step, _ in losses(reference)]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The reference with sample pictures, and the global generators' states before and after."""
    run, states = tmp_path_factory.mktemp("runs") / "sampled", []
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(samples, "_steps", lambda timesteps, wanted=0: 4)
        for work in (lambda: None, lambda: make_plan(tiny()), lambda: train(tiny("sample_every=4"), run)):
            work()
            states.append((torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()))
    return run, states


def test_training_leaves_the_global_generators_alone(sampled: tuple[Path, list[Any]]) -> None:
    before, planned, trained = sampled[1]
    assert planned == before
    assert trained == before


def test_the_gap_counts_each_image_once(tmp_path: Path) -> None:
    """40 images in batches of 32: the second batch begins anew after 8."""
    train(tiny("chunks.partition=auto", "modularity.weighting=gap", "gradient=detached"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "gap.json").read_text())["images"] == 40


def test_the_first_step_may_compile_and_counts_in_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, real = [0.0], loop.StageTrainer.train_step

    def step(self: Any, inputs: Any) -> None:
        now[0] += 1.0 if self.step else 99.0
        real(self, inputs)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(loop.StageTrainer, "train_step", step)
    train(tiny("base.images=32", "features.images=8", "log_every=1"), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images_per_second"] for row in rows] == pytest.approx([8 / 99, 8, 8, 8, 8 / 99])


def test_a_sample_picture_never_ends_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nand more")

    reporter = Warnings()
    for drawing in ("base_samples", "reconstructions"):
        monkeypatch.setattr(samples, drawing, fail)
    train(tiny("sample_every=3", "features.images=16"), tmp_path / "run", reporter=reporter)
    assert sum("could not be drawn (OutOfMemoryError: CUDA out of memory.)" in text for text in reporter.texts) == 3


def test_a_base_of_few_timesteps_has_sample_pictures(tmp_path: Path) -> None:
    """50 timesteps and 2: as many solver steps as there may be."""
    for timesteps in (50, 2):
        unet = UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            add_attention=False,
        )
        base, run, reporter = tmp_path / f"base-{timesteps}", tmp_path / f"run-{timesteps}", Warnings()
        scheduler = DDPMScheduler(num_train_timesteps=timesteps, beta_end=0.3)
        DDPMPipeline(unet, scheduler).save_pretrained(base)
        more = ("sample_every=1", "features.images=8", "chunks.count=2")
        train(tiny(*more, base_model=str(base)), run, reporter=reporter)
        assert (run / "samples" / "features-00000001.png").is_file(), reporter.texts


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
    """It learns something else than with prefixes, and the finished model knows what its timesteps see."""
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
    with pytest.raises(ConfigError, match="no dim belongs to a timestep") as caught:
        tiny("chunks.visible=all")
    assert "--gradient detached" in str(caught.value.remedy)


def test_streamed_images_give_the_same_run(reference: Path, tmp_path: Path) -> None:
    """Data too large for memory is decoded by workers, in the same order."""
    run = tmp_path / "stream"
    train(tiny("data.memory_limit_mb=0", "data.workers=1"), run)
    assert losses(run) == losses(reference)


def test_samples_and_charts_are_drawn(sampled: tuple[Path, list[Any]]) -> None:
    run = sampled[0]
    names = {p.name for p in (run / "samples").iterdir()}
    quality = json.loads((run / "quality.json").read_text())
    assert quality["step"] == 8
    assert quality["reconstruction_psnr_db"] > 0
    assert names == {
        *("base-00000004.png", "base-00000005.png", "base-loss-by-timestep.png"),
        *("features-00000004.png", "features-00000008.png", "features-loss-by-timestep.png"),
    }
    with Image.open(run / "samples" / "features-00000008.png") as picture:
        assert picture.width > 8 * 16


def test_tensorboard_has_the_pictures(sampled: tuple[Path, list[Any]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stage, steps in (("base", [4, 5]), ("features", [4, 8])):
        events = EventAccumulator(str(sampled[0] / "tensorboard" / stage))
        events.Reload()
        for name in ("samples", "loss_by_timestep"):
            shown = events.Images(f"{stage}/{name}")
            assert [event.step for event in shown] == steps
            assert min(shown[0].width, shown[0].height) > 100


def test_every_sample_picture_is_of_the_weights_of_its_step(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all pictures after the first were decoded by copies of the first one's networks."""
    drawn: list[dict[str, torch.Tensor]] = []
    decoded: list[torch.Tensor] = []
    x, z = torch.randn(1, 3, 16, 16), torch.randn(1, 16)

    def seen(pipeline: DiTiPipeline, *_: object, **__: object) -> None:
        drawn.append({name: value.clone() for name, value in pipeline.shift_decoder.state_dict().items()})
        decoded.append(pipeline.decode(x, z, steps=2, precision="fp32"))

    monkeypatch.setattr("diticli.training.samples.reconstructions", seen)
    train(tiny("sample_every=2", "features.images=32", base_model=str(reference)), tmp_path / "run")
    assert len(drawn) >= 2
    model = DiTiPipeline.from_pretrained(tmp_path / "run")
    for state, picture in zip(drawn, decoded, strict=True):
        model.shift_decoder.load_state_dict(state)
        assert torch.equal(model.decode(x, z, steps=2, precision="fp32"), picture)
    assert not torch.equal(decoded[0], decoded[-1])


def test_sampling_does_not_disturb_training(reference: Path, sampled: tuple[Path, list[Any]]) -> None:
    run = sampled[0]
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
    from diticli.training.accelerator import make_accelerator, resolve

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    config = resolve(build_config(preset="faces32", assignments=("base.batch_size=8",)))
    with pytest.raises(ConfigError, match="batch_size 8 cannot be shared by 3 processes"):
        make_accelerator(config)
