"""Training steps as one CUDA graph: the same run, or the step as it is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_on_cpu import Forgetful, Tape, fake_gpu
from test_fast_training import Recorder
from test_training import StopAfter, losses, same, tiny, weights
from torch import nn

from diticli.models.compiled import StepGraph, may_capture_steps
from diticli.schedule import NoiseSchedule
from diticli.training import captured
from diticli.training.captured import StepGradients
from diticli.training.objectives import NoiseObjective
from diticli.training.run import train
from diticli.training.step_losses import StepLosses
from diticli.training.stopping import TrainingInterrupted

CPU = torch.device("cpu")
SAID = "steps run as one CUDA graph"


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Graphs on the CPU, captured in a stage's third step."""
    monkeypatch.setattr(captured, "EAGER_STEPS", 2)
    return fake_gpu(monkeypatch)


def test_an_interrupted_captured_run_is_the_eager_one(
    tapes: list[Tape], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, over both stages, with clipped gradients."""
    monkeypatch.setattr(captured, "EAGER_STEPS", 1)
    config, heard = tiny("base.images=32", "features.images=48", "checkpoint_every=100"), Recorder()
    monkeypatch.setenv("DITI_CUDA_GRAPH", "0")
    train(config, tmp_path / "eager")
    assert not tapes
    monkeypatch.delenv("DITI_CUDA_GRAPH")
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path / "run", reporter=StopAfter("features", 32))
    train(config, tmp_path / "run", reporter=heard)
    assert [tape.replays for tape in tapes] == [2 + 2, 2 + 2, 2], "twice to compare, then each step"
    assert heard.warnings == []
    assert [note for note in heard.notes if "graph" in note] == [
        f"Stage features: {SAID} (DITI_CUDA_GRAPH=0: without)."
    ]
    assert losses(tmp_path / "run") == losses(tmp_path / "eager")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "eager"))


class Line(nn.Module):
    """An objective with a factor that comes from the host, a layer that begins at zero, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(2, 2)
        nn.init.zeros_(self.last.weight)
        self.scale: Callable[[torch.Tensor], Any] = lambda beta: beta

    def forward(self, x_BD: torch.Tensor, beta: torch.Tensor) -> StepLosses:
        noise_B = (self.last(self.first(x_BD).sin()) - x_BD[:, :4]).square().mean(dim=1)
        return StepLosses(noise_B * (1 + self.scale(beta)), noise_B, None)


class Training:
    """Steps of gradient descent on a `Line`, as `StageTrainer` takes them: gradients are dropped after each."""

    def __init__(self, *, capture: bool = True) -> None:
        torch.manual_seed(0)
        self.objective, self.heard, self.losses = Line(), Recorder(), []
        self.gradients = StepGradients(
            self.compute, self.objective, capture=capture, name="base", tolerance=1e-4, reporter=self.heard
        )
        self.optimizer = torch.optim.Adam(self.objective.parameters(), lr=0.1)

    def compute(self, inputs: Mapping[str, torch.Tensor]) -> StepLosses:
        losses = self.objective(**inputs)
        losses.total_B.mean().backward()
        return losses

    def steps(self, count: int = 8, *, small: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> Training:
        for step in range(len(self.losses), len(self.losses) + count):
            random = torch.Generator().manual_seed(step)
            x = torch.randn(3 if step in small else 5, 6, generator=random)
            if step in broken:
                x[0, 0] = torch.nan
            losses = self.gradients({"x_BD": x, "beta": torch.tensor(step / 10)})
            self.losses.append(losses.total_B.tolist())
            if step not in broken:
                nn.utils.clip_grad_norm_(self.objective.parameters(), 0.5)
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return self

    def same_as_eager(self, **how: Any) -> bool:
        eager = Training(capture=False).steps(len(self.losses), **how)
        pairs = zip(self.objective.parameters(), eager.objective.parameters(), strict=True)
        alike = all(torch.equal(a, b) for a, b in pairs)
        return alike and repr(self.losses) == repr(eager.losses)


def test_graphs_read_inputs_and_weights_anew(tapes: list[Tape]) -> None:
    training = Training().steps()
    assert tapes[0].replays == 2 + 5
    assert training.same_as_eager()
    assert training.heard.warnings == []


def test_a_smaller_batch_is_computed_without(tapes: list[Tape]) -> None:
    training = Training().steps(small=(4, 6))
    assert tapes[0].replays == 2 + 3
    assert len(tapes) == 1
    assert training.same_as_eager(small=(4, 6))


def test_a_step_that_is_skipped_decides_nothing(tapes: list[Tape]) -> None:
    training = Training().steps(broken=(2, 3, 6))
    assert tapes[0].replays == 2 + 3, "captured at step 4"
    assert training.same_as_eager(broken=(2, 3, 6))
    assert training.heard.warnings == []


def test_a_replay_sets_gradients_and_adds_nothing(tapes: list[Tape]) -> None:
    training = Training().steps(3)
    inputs = {"x_BD": torch.ones(5, 6), "beta": torch.tensor(0.0)}
    training.gradients(inputs)
    once = training.objective.last.weight.grad.clone()
    training.gradients(inputs)
    assert torch.equal(training.objective.last.weight.grad, once)
    assert training.objective.unused.weight.grad is None


def test_random_numbers_are_those_of_a_step_without(tapes: list[Tape]) -> None:
    training = Training().steps(2)
    torch.manual_seed(7)
    wanted = torch.randn(3)
    torch.manual_seed(7)
    training.steps(1)
    assert len(tapes) == 1
    assert torch.equal(torch.randn(3), wanted)


def number_of_the_host(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training.objective.scale = lambda beta: beta.item()


def inputs_that_are_not_copied(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepGraph, "fill", lambda self, *inputs: None)


def one_gradient(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    real = StepGraph.replay

    def replay(self: StepGraph) -> Any:
        losses, gradients = real(self)
        gradients[1].mul_(1.001)
        return losses, gradients

    monkeypatch.setattr(StepGraph, "replay", replay)


def copies_of_weights(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, Forgetful)


@pytest.mark.parametrize("fault", [number_of_the_host, inputs_that_are_not_copied, one_gradient, copies_of_weights])
def test_a_graph_with_wrong_numbers_never_runs(
    fault: Callable[..., None], tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training()
    fault(training, monkeypatch)
    training.steps()
    (warning,) = training.heard.warnings
    assert "WRONG on this GPU" in warning
    assert "diti doctor --json" in warning
    assert "DITI_CUDA_GRAPH=0" in warning
    assert training.heard.notes == []
    assert training.gradients._graph is None
    assert training.same_as_eager()


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a capture fails whose end fails because of that."""

    class Failing:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *raised: object) -> None:
            try:
                raise error
            except Exception:
                raise RuntimeError("CUDA error: operation failed due to a previous error")  # noqa: B904

    monkeypatch.setattr(torch.cuda, "graph", lambda tape, **how: Failing())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("operation not permitted when stream is capturing"), "RuntimeError: operation not permitted"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "does not fit in memory"),
    ],
)
def test_a_capture_that_fails_costs_the_graph_alone(
    error: Exception, said: str, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error, monkeypatch)
    training = Training().steps()
    (warning,) = training.heard.warnings
    assert said in warning
    assert "DITI_CUDA_GRAPH=0" in warning
    assert training.same_as_eager()


def test_the_step_itself_runs_out_of_memory_as_ever(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training().steps(2)
    monkeypatch.setattr(training, "compute", None)
    training.gradients._compute = lambda inputs: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        training.steps(1)
    assert training.heard.warnings == []


def test_weights_that_were_moved_are_captured_anew(tapes: list[Tape]) -> None:
    training = Training().steps(4)
    training.gradients.look_again()
    training.steps(1)
    assert len(tapes) == 1
    training.objective.first.weight.data = training.objective.first.weight.data.clone()
    training.gradients.look_again()
    training.steps(3)
    assert len(tapes) == 2
    assert len(training.heard.notes) == 1
    assert training.same_as_eager()


def test_pictures_are_drawn_in_the_memory_of_a_graph_that_leaves_little(
    tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training().steps(4)
    training.gradients.make_room()
    training.steps(1)
    assert len(tapes) == 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 100))
    training.gradients.make_room()
    assert training.gradients._graph is None
    training.steps(3)
    assert len(tapes) == 2
    assert len(training.heard.notes) == 1
    assert training.same_as_eager()


def test_a_released_graph_is_gone(tapes: list[Tape]) -> None:
    training = Training().steps(4)
    graph = weakref.ref(training.gradients._graph)
    training.gradients.release()
    assert graph() is None


def test_a_keys_bias_is_judged_beside_its_weight(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient is rounding alone, which two right computations need not share."""
    monkeypatch.setattr(captured, "_zero_gradients", lambda objective: {"last.bias": "last.weight"})
    real = StepGraph.replay

    def replay(self: StepGraph) -> Any:
        losses, gradients = real(self)
        gradients[3].add_(gradients[2].norm() * 1e-5)
        return losses, gradients

    monkeypatch.setattr(StepGraph, "replay", replay)
    assert Training().steps(4).heard.warnings == []


def test_softmax_does_not_see_a_keys_bias(make_unet: Any) -> None:
    unet = make_unet().requires_grad_(True)
    objective = NoiseObjective(unet, NoiseSchedule(torch.linspace(0.999, 0.98, 10)))
    objective(torch.randn(4, 3, 16, 16), torch.arange(4), torch.randn(4, 3, 16, 16)).mean().backward()
    gradients = {name: p.grad.norm() for name, p in objective.named_parameters()}
    pairs = captured._zero_gradients(objective)
    assert pairs
    assert all(gradients[bias] < 1e-5 * gradients[weight] for bias, weight in pairs.items())
    assert all(gradients[bias.replace("to_k", "to_v")] > 1e-3 * gradients[weight] for bias, weight in pairs.items())


def test_dropout_is_never_captured(tapes: list[Tape]) -> None:
    training = Training()
    training.objective.add_module("dropout", nn.Dropout(0.1))
    assert not StepGradients(
        training.compute, training.objective, capture=True, name="", tolerance=0, reporter=training.heard
    ).captures


def test_who_captures_steps(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_capture_steps(CPU, processes=1, views=False)
    assert not may_capture_steps(CPU, processes=2, views=False)
    assert not may_capture_steps(CPU, processes=1, views=True)
    monkeypatch.setenv("DITI_CUDA_GRAPH", "0")
    assert not may_capture_steps(CPU, processes=1, views=False)
    monkeypatch.undo()
    assert not may_capture_steps(CPU, processes=1, views=False), "on GPUs alone"


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_a_gpu_trains_both_stages_the_same(kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with a KL weight that rises, by algorithms that repeat themselves."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(captured, "EAGER_STEPS", 2)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    for name, word in {"DITI_KERNELS": kernels, "DITI_ATTENTION": "math"}.items():
        monkeypatch.setenv(name, word)
    modular = ("modularity.weighting=gap", "modularity.bottleneck=0.03")
    config, heard = tiny("device=cuda", "precision=bf16", "compile=false", *modular), Recorder()
    for graph in ("0", "1"):
        monkeypatch.setenv("DITI_CUDA_GRAPH", graph)
        train(config, tmp_path / graph, reporter=heard)
    assert heard.warnings == []
    assert len([note for note in heard.notes if SAID in note]) == 2
    assert losses(tmp_path / "1") == losses(tmp_path / "0")
    assert same(weights(tmp_path / "1"), weights(tmp_path / "0"))
