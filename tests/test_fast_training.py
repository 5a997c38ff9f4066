"""What makes training fast changes nothing but its speed: feeds, frozen copies, compiled parts, no waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import StopAfter, losses, same, tiny, weights
from torch.utils._python_dispatch import TorchDispatchMode

from diticli.config import RunConfig
from diticli.distributed import Rank
from diticli.errors import ConfigError
from diticli.models import compiled, transfer
from diticli.models.compiled import CPU_STEPS, should_compile
from diticli.models.frozen import FrozenBase
from diticli.progress import SilentReporter
from diticli.settings import build_config
from diticli.training import stage_two
from diticli.training.accelerator import make_accelerator, resolve
from diticli.training.batches import DataOrder, MemoryFeed, StepNoise
from diticli.training.checkpoint import flatten_optimizer, restore_optimizer
from diticli.training.loop import StageTrainer
from diticli.training.plan import make_plan
from diticli.training.run import train
from diticli.training.stage import Stage, draw_inputs
from diticli.training.stopping import TrainingInterrupted

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# What makes the host wait for a GPU: a value or a shape that depends on one.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "is_nonzero", "item"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base the others use."""
    run = tmp_path_factory.mktemp("runs") / "base"
    train(tiny("base.images=16", "features.images=8"), run)
    return run


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in float32."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    train(tiny(base_model=str(base)), run)
    return run


@pytest.fixture(scope="module")
def half(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bf16."""
    run = tmp_path_factory.mktemp("runs") / "half"
    train(tiny("precision=bf16", base_model=str(base)), run)
    return run


def loss_curve(run: Path) -> list[float]:
    return [loss for stage, _, loss in losses(run) if stage == "features"]


class Recorder(SilentReporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def trainer_of(config: RunConfig, base: Path, device: torch.device) -> StageTrainer:
    """A trainer of stage 2 on random images."""
    from diticli.models.base_files import load_base

    config, accelerator = resolve(config), make_accelerator(resolve(config))
    unet, scheduler = load_base(str(base), resolution=16)
    objective = stage_two.build_objective(config, unet, scheduler)
    images = np.random.default_rng(0).integers(256, size=(24, 16, 16, 3), dtype=np.uint8)
    stage = Stage(
        name="features",
        objective=objective.train(),
        budget=config.features,
        feed=MemoryFeed(images),
        images=24,
        resolution=16,
        seed=0,
        flip=True,
        log_every=1,
        checkpoint_every=1,
        sample_every=0,
        checkpoints=base / "none",
        identity="",
    )
    return StageTrainer(stage, accelerator, compile=config.compile is True)


def take_steps(trainer: StageTrainer, first: int, last: int, device: torch.device) -> None:
    stage = trainer.stage
    order = DataOrder(stage.images, stage.budget.batch_size, seed=0)
    noise = StepNoise(seed=0, stage="features", timesteps=1000, batch_size=8, flip=True, rank=Rank())
    for images in stage.feed.batches(order, first, last, Rank(), device):
        trainer.train_step(draw_inputs(stage, noise, None, trainer.step, images))


class Refuse(TorchDispatchMode):
    """Fails on operators that make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        assert func.overloadpacket.__name__ not in WAITING, f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient", ["cumulative", "dual"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(base: Path, precision: str, gradient: str) -> None:
    trainer = trainer_of(tiny(f"precision={precision}", gradient=gradient), base, CPU)
    take_steps(trainer, 0, 1, CPU)
    with Refuse() as mode:
        take_steps(trainer, 1, 3, CPU)
    assert mode.calls > 100
    with pytest.raises(AssertionError, match="makes the host wait"), Refuse():
        trainer.totals.take_mean()


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["1", "0"])
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_step_never_waits_for_the_gpu(base: Path, share: float, graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own check: it raises where a call synchronises."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setenv("DITI_CUDA_GRAPH", graph)
    trainer = trainer_of(tiny("device=cuda", "compile=false"), base, CUDA)
    trainer.stage.feed.resident_share = share  # type: ignore[attr-defined]
    trainer.gradients.eager_steps = 1
    take_steps(trainer, 0, 3, CUDA)
    assert (trainer.gradients._graph is not None) == (graph == "1")
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_steps(trainer, 3, 7, CUDA)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_feeds_of_a_gpu_deliver_what_the_host_has(share: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = np.random.default_rng(0).integers(256, size=(50, 8, 8, 3), dtype=np.uint8)
    order = DataOrder(50, 16, seed=3)
    wanted = list(MemoryFeed(images).batches(order, 2, 30, Rank(), CPU))
    got = list(MemoryFeed(images, share).batches(order, 2, 30, Rank(), CUDA))
    assert all(batch.device.type == "cuda" for batch in got)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(wanted, got, strict=True))


def test_memory_feed_follows_the_order() -> None:
    images = np.random.default_rng(0).integers(256, size=(10, 4, 4, 3), dtype=np.uint8)
    order = DataOrder(10, 4, seed=3)
    for rank in (Rank(), Rank(index=1, count=2)):
        for step, batch in enumerate(MemoryFeed(images).batches(order, 2, 7, rank, CPU), start=2):
            wanted = images[order.batch(step)[rank.local_slice(4)]].transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(batch.numpy(), wanted)


def test_images_stay_on_the_host_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert transfer.fits_in_memory(250, CUDA, 0.25)
    assert not transfer.fits_in_memory(251, CUDA, 0.25)
    assert not transfer.fits_in_memory(1, CPU, 1.0)


class TestPrefetched:
    """A thread ahead of the loop: same items, same errors, nothing left running."""

    def test_same_items_in_order(self) -> None:
        assert list(transfer.prefetched(iter(range(20)), depth=3)) == list(range(20))
        assert list(transfer.prefetched(iter([]))) == []

    def test_errors_come_where_they_belong(self) -> None:
        def broken() -> Iterator[int]:
            yield 1
            yield 2
            raise OSError("unplugged")

        items, got = transfer.prefetched(broken()), []
        with pytest.raises(OSError, match="unplugged"):
            got.extend(items)
        assert got == [1, 2]

    def test_leaving_closes_the_source(self) -> None:
        made, closed = [], []

        def source() -> Iterator[int]:
            try:
                for i in range(100):
                    made.append(i)
                    yield i
            finally:
                closed.append(True)

        items = transfer.prefetched(source(), depth=2)
        assert next(items) == 0
        items.close()  # type: ignore[attr-defined]
        assert closed == [True]
        assert len(made) <= 4


@pytest.mark.parametrize("gradient", ["cumulative", "dual"])
def test_the_frozen_copy_gives_the_same_losses(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient: str
) -> None:
    """Float32 differs by rounding: upsampling and convolution are one operation in the copy."""
    wanted = tiny(base_model=str(base), gradient=gradient)
    train(wanted, tmp_path / "copy")
    monkeypatch.setattr(stage_two, "FrozenBase", lambda unet, dtype: unet)
    train(wanted, tmp_path / "itself")
    assert loss_curve(tmp_path / "copy") == pytest.approx(loss_curve(tmp_path / "itself"), rel=1e-4)


def test_bf16_differs_by_rounding_only(
    base: Path, plain: Path, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is as near to float32 as autocast of the base itself.

    A bf16 number is off by up to 2^-9; a loss is the mean of hundreds of squares of such errors beside its own
    terms, and eight Adam steps, whose size does not shrink with the gradient, let two runs drift: 2 % holds both.
    """
    curves = {"fp32": np.array(loss_curve(plain)), "copy": np.array(loss_curve(half))}
    monkeypatch.setattr(stage_two, "FrozenBase", lambda unet, dtype: unet)
    train(tiny("precision=bf16", base_model=str(base)), tmp_path / "autocast")
    autocast = np.array(loss_curve(tmp_path / "autocast"))
    np.testing.assert_allclose(curves["copy"], curves["fp32"], rtol=2e-2)
    np.testing.assert_allclose(curves["copy"], autocast, rtol=2e-2)
    assert not np.array_equal(curves["copy"], curves["fp32"])


def test_the_copy_stays_out_of_files(base: Path, half: Path) -> None:
    """Checkpoints hold what is trained, the pipeline the base in float32 as it was given."""
    config = tiny("precision=bf16", base_model=str(base))
    trainer = trainer_of(config, base, CPU)
    assert isinstance(trainer.stage.objective.unet, FrozenBase)
    assert {name.split(".")[0] for name in trainer._state()} == {"encoder", "shift_decoder"}
    given, saved = weights(base), weights(half)
    unet = [name for name in given if name.startswith("unet.")]
    assert unet
    assert all(torch.equal(given[name], saved[name]) and saved[name].dtype == torch.float32 for name in unet)


def test_bf16_goes_on_bit_for_bit(base: Path, half: Path, tmp_path: Path) -> None:
    config = tiny("precision=bf16", base_model=str(base))
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path / "run", reporter=StopAfter("features", 24))
    train(config, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(half)
    assert same(weights(tmp_path / "run"), weights(half))


def test_compiled_parts_give_the_same_run(base: Path, tmp_path: Path, graphs: list[Any]) -> None:
    """One inference graph of the base and one training graph, forward and backward, for the whole run."""
    wanted, reporter = tiny(base_model=str(base)), Recorder()
    train(wanted, tmp_path / "plain")
    assert not graphs
    config = tiny("compile=true", base_model=str(base))
    train(config, tmp_path / "compiled", reporter=reporter)
    assert not reporter.warnings
    names = ("frozen base", "features' training graph")
    said = [note.rstrip("0123456789 s.") for note in reporter.notes if "ompil" in note]
    assert said == [
        text
        for name in names
        for text in (f"Compiling the {name}, once, before its first use", f"Compiled the {name} in")
    ]
    assert len(graphs) == 3
    assert loss_curve(tmp_path / "compiled") == pytest.approx(loss_curve(tmp_path / "plain"), rel=1e-4)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()


def test_many_instances_of_one_function_are_compiled(graphs: list[Any]) -> None:
    """Dynamo counts the graphs of a function's code, whose limit of 8 the fifth frozen pair of a process met."""

    class Part:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def step(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    reporter = Recorder()
    parts = [compiled.CompiledPart("step", Part(factor).step, reporter) for factor in range(10)]
    assert [part(torch.ones(1)).item() for part in parts] == list(range(10))
    assert not reporter.warnings
    assert len(graphs) == 10


def test_a_compiler_that_fails_is_told_once(
    base: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile(function, backend=broken, **how))
    torch.compiler.reset()
    reporter = Recorder()
    train(tiny("compile=true", base_model=str(base)), tmp_path / "run", reporter=reporter)
    assert [w.split(",")[0] for w in reporter.warnings] == [
        "torch.compile failed on the frozen base",
        "torch.compile failed on the features' training graph",
    ]
    assert all("RuntimeError: no C++ compiler" in warning for warning in reporter.warnings)
    assert losses(tmp_path / "run") == losses(plain)


def test_errors_of_the_function_itself_are_not_swallowed() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        compiled.CompiledPart("part", function, SilentReporter())(torch.ones(1))


def test_auto_compiles_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = build_config("faces32"), build_config("celeba64")
    assert short.compile == "auto"
    assert not should_compile(short, CUDA)  # compiling takes minutes, the run not much longer
    assert should_compile(build_config("faces64"), CUDA)
    assert should_compile(long, CUDA)
    for minutes in (10, 60):
        planned = replace(short, minutes=minutes)
        assert should_compile(planned, CUDA) == (minutes == 60)
        assert not should_compile(planned, CPU)
    assert not should_compile(short, CPU)
    monkeypatch.setenv("DITI_LAYOUT", "channels_last")
    assert not should_compile(replace(long, precision="fp32"), CPU)  # norms run in C either way
    monkeypatch.setenv("DITI_LAYOUT", "contiguous")
    assert should_compile(long, CPU)
    for precision, steps in CPU_STEPS.items():
        half = {"base.images": steps // 2 * 64, "features.images": steps // 2 * 32, "precision": precision}
        assert should_compile(build_config("faces32", options=half), CPU)
        assert not should_compile(build_config("faces32", options=half | {"base_model": "x"}), CPU)
    assert resolve(tiny()).compile is False
    assert resolve(tiny("compile=true")).compile is True


@pytest.mark.parametrize("value", ["maybe", "1"])
def test_compile_is_auto_true_or_false(value: str) -> None:
    with pytest.raises(ConfigError, match="compile is one of auto, true, false"):
        tiny(f"compile={value}")


def test_plan_tells_compilation_apart(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_at_first(function: Any, **how: Any) -> Any:
        delays = [0.3]
        return lambda *arguments: (time.sleep(delays.pop() if delays else 0), function(*arguments))[1]

    monkeypatch.setattr(torch, "compile", slow_at_first)
    plain, made = make_plan(tiny(base_model=str(base))), make_plan(tiny("compile=true", base_model=str(base)))
    assert (plain.compile, made.compile) == (False, True)
    assert plain.stages[0].compile_seconds == 0
    assert made.stages[0].compile_seconds > 0.5, "two parts"
    stage = made.stages[0]
    assert stage.seconds == pytest.approx(stage.images / stage.images_per_second + stage.compile_seconds)
    assert stage.frozen_parameters == sum(v.numel() for n, v in weights(base).items() if n.startswith("unet."))


def test_kernels_give_the_same_losses(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of `DITI_KERNELS`, where Triton can run."""
    from diti_kernels import dispatch

    if not (torch.cuda.is_available() or dispatch.triton_is_interpreted()):
        pytest.skip("Triton neither has a GPU here nor was loaded for its interpreter")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    curves = {}
    for name in ("reference", "triton"):
        monkeypatch.setenv(dispatch.VARIABLE, name)
        if name == "triton" and device == "cpu":
            monkeypatch.setenv("TRITON_INTERPRET", "1")
        small = ("features.images=4", "features.batch_size=2", "compile=false")
        config = tiny(*small, base_model=str(base), device=device)
        train(config, tmp_path / name)
        curves[name] = loss_curve(tmp_path / name)
    assert curves["triton"] == pytest.approx(curves["reference"], rel=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_restored_optimizer_goes_on_whatever_the_layout_of_weights(layout: torch.memory_format) -> None:
    """Files hold no strides, and fused Adam walks the memory of weights and moments side by side."""

    def fresh() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        values = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        weight = torch.nn.Parameter(values.to(memory_format=layout))
        return weight, torch.optim.Adam([weight], lr=0.1, fused=True)

    def step(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, seed: int) -> None:
        weight.grad = torch.empty_like(weight).copy_(
            torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
        )
        optimizer.step()

    (weight, optimizer), (resumed, restored) = fresh(), fresh()
    step(weight, optimizer, 1)
    with torch.no_grad():
        resumed.copy_(weight)
    saved = {name: v.clone(memory_format=torch.contiguous_format) for name, v in flatten_optimizer(optimizer).items()}
    restore_optimizer(restored, saved)
    for w, o in ((weight, optimizer), (resumed, restored)):
        step(w, o, 2)
    assert torch.equal(weight, resumed)
