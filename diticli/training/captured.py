"""Losses and gradients of a training step as one CUDA graph, which runs only where it was seen to be right.

On a GPU the host takes longer to launch a step's kernels one by one than the GPU to run them. The graph reads copies of
a step's inputs and the weights where they lie, and writes losses and gradients to memory of its own. Drawing inputs,
clipping, the optimizer, the moving average and the totals stay outside.

Before a graph is taken, its losses and every parameter's gradient are compared with those of the step as it is. It is
captured with other inputs (zeros) and other weights (their signs turned): a graph that keeps a number which it should
read anew gives other results then.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from diticli.memory import is_out_of_memory
from diticli.models.compiled import StepGraph
from diticli.models.device import global_generators_kept
from diticli.models.largest_batch import release_memory
from diticli.models.modules import SelfAttention
from diticli.progress import Reporter
from diticli.training.step_losses import StepLosses

EAGER_STEPS = 10
"""Steps of a process before it captures one. Layers that begin at zero, which let no gradient through, have moved by
then, so that there is something to compare."""
TOLERANCE = {"no": 1e-4, "bf16": 1e-2}
"""By Accelerate's precision: difference that is allowed in any case, as a share of a gradient's norm. There should be
none: the kernels are the same."""
NOISE = 4.0
"""Difference that is allowed, in differences of the step as it is, computed again and with its images in reverse order:
a mean has the same gradient then, but other rounding errors."""
MOST_NOISE = 0.5
"""Of a gradient's norm, in any case."""
ROOM = 0.1
"""Share of a GPU's memory that has to be free beside a graph where pictures are drawn."""

_LOSSES = StepLosses._fields
Inputs = Mapping[str, torch.Tensor]
Results = dict[str, torch.Tensor | None]
"""Losses and gradients by name."""


class WrongGraphError(Exception):
    """A graph gives other numbers than the step that was captured."""


class StepGradients:
    """Computes a step's losses, and its gradients in the parameters: kernel by kernel, or as one CUDA graph.

    A batch of another shape than the captured one is computed kernel by kernel, and so is everything once capturing
    failed, which the reporter is warned of.

    Args:
        compute: losses of inputs by name; adds the gradients to those of the parameters.
        objective: that is trained.
        capture: whether to try; an objective with dropout never is, since its images are compared in two orders.
        name: of the stage, for people.
        tolerance: difference that is allowed in any case, as a share of a gradient's norm.
        reporter: told when steps are captured, and why not.
    """

    def __init__(
        self,
        compute: Callable[[Inputs], StepLosses],
        objective: nn.Module,
        *,
        capture: bool,
        name: str,
        tolerance: float,
        reporter: Reporter,
    ) -> None:
        self._compute, self._objective = compute, objective
        self._name, self._tolerance, self._reporter = name, tolerance, reporter
        self._trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self._parameters = list(self._trained.values())
        self._zero = _zero_gradients(objective)
        self.captures = capture and not _has_dropout(objective)
        self.eager_steps = EAGER_STEPS
        self._done, self._said = 0, False
        self._graph: StepGraph | None = None
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._places: list[int] = []

    def __call__(self, inputs: Inputs) -> StepLosses:
        """Losses of the step; those of a graph lie in memory that its next step overwrites, as its gradients do.

        Args:
            inputs: arguments of the objective by name. The parameters have no gradients.
        """
        self._done += 1
        if self._graph is not None and _shapes(inputs) == self._shapes:
            return self._replay(self._graph, inputs)
        if self._graph is not None or not self.captures or self._done <= self.eager_steps:
            return self._compute(inputs)
        return self._capture(inputs)

    def look_again(self) -> None:
        """Where weights do not lie any more where the graph reads them, forget it: the next step is captured anew."""
        if self._graph is not None and self._places != _places(self._objective):
            self._graph = None

    def make_room(self) -> None:
        """Before pictures are drawn: where little memory is free beside the graph, let go of it until the next step."""
        if self._graph is None:
            return
        free, whole = torch.cuda.mem_get_info(self._parameters[0].device)
        if free < ROOM * whole:
            self._graph = None
            release_memory()

    def release(self) -> None:
        """Let go of the graph and its memory."""
        self._graph = None

    def _replay(self, graph: StepGraph, inputs: Inputs) -> StepLosses:
        graph.fill(*(inputs[name] for name in self._shapes))
        losses, gradients = graph.replay()
        self._put(gradients)
        result: StepLosses = losses
        return result

    def _capture(self, inputs: Inputs) -> StepLosses:
        """The step as it is; the steps that follow are a graph if that is seen to be right on this one."""
        losses = self._compute(inputs).detached()
        gradients = self._take()
        problem: Exception | None = None
        try:
            with global_generators_kept(losses.total_B.device):
                self._try(inputs, self._results(losses, gradients))
        except Exception as error:  # whatever a capture meets: the step was computed
            self._graph, self.captures, problem = None, False, error
        finally:
            self._put(gradients)
        if problem is not None:
            self._explain(problem)
        return losses

    def _try(self, inputs: Inputs, wanted: Results) -> None:
        sizes = _norms(wanted)
        if not all(map(math.isfinite, sizes.values())):
            return  # the optimizer skips such a step; the next one may do
        usual = _distances(self._again(inputs), wanted)
        turned = self._again({name: x.flip(0) if x.ndim else x for name, x in inputs.items()})
        turned |= {name: x.flip(0) for name in _LOSSES if (x := turned[name]) is not None}
        usual = {name: max(usual[name], distance) for name, distance in _distances(turned, wanted).items()}
        del turned
        release_memory()  # of the step as it is, which the graph takes for itself
        graph = self._record(inputs)
        self._replay(graph, inputs)
        losses = self._replay(graph, inputs)  # once more, as gradients that are added up would show now
        off = _distances(self._results(losses, self._take()), wanted)
        scales = {name: sizes[self._zero.get(name, name)] for name in off}
        noise = {name: min(NOISE * usual[name], MOST_NOISE * sizes[name]) for name in off}
        limits = {name: max(noise[name], self._tolerance * scales[name]) for name in off}
        if wrong := [name for name in off if not off[name] <= limits[name]]:
            name = max(wrong, key=lambda name: off[name] / max(limits[name], 1e-300))
            raise WrongGraphError(
                f"{len(wrong)} of {len(off)} results; {name} is off by {off[name]:.1e}, allowed {limits[name]:.1e}, "
                f"its norm {sizes[name]:.1e}"
            )
        self._graph, self._places = graph, _places(self._objective)
        if not self._said:
            self._reporter.note(f"Stage {self._name}: steps run as one CUDA graph (DITI_CUDA_GRAPH=0: without).")
        self._said = True

    def _record(self, inputs: Inputs) -> StepGraph:
        self._shapes, device = _shapes(inputs), self._parameters[0].device

        def step(*values: torch.Tensor) -> tuple[StepLosses, list[torch.Tensor | None]]:
            self._take()
            losses = self._compute(dict(zip(self._shapes, values, strict=True))).detached()
            return losses, [p.grad for p in self._parameters]

        blank = [torch.zeros_like(inputs[name], device=device) for name in self._shapes]
        with _signs_turned(self._parameters):
            return StepGraph(step, *blank, gradients=True)

    def _again(self, inputs: Inputs) -> Results:
        losses = self._compute(inputs).detached()
        return self._results(losses, self._take())

    def _take(self) -> list[torch.Tensor | None]:
        """The gradients, which the parameters have no more."""
        gradients = [p.grad for p in self._parameters]
        self._put([None] * len(gradients))
        return gradients

    def _put(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _results(self, losses: StepLosses, gradients: Sequence[torch.Tensor | None]) -> Results:
        return {**dict(zip(_LOSSES, losses, strict=True)), **dict(zip(self._trained, gradients, strict=True))}

    def _explain(self, problem: Exception) -> None:
        causes = [problem]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
            causes.append(cause)  # type: ignore[arg-type]
        for cause in causes:
            traceback.clear_frames(cause.__traceback__)  # their locals hold what the capture took
        release_memory()
        begin, off = (
            f"Stage {self._name}: steps run without a CUDA graph, more slowly",
            "DITI_CUDA_GRAPH=0 does not try.",
        )
        if any(map(is_out_of_memory, causes)):
            self._reporter.warn(f"{begin}: it does not fit in memory. Try a smaller --batch-size; {off}")
            return
        what = f"{type(causes[-1]).__name__}: {(str(causes[-1]).strip().splitlines() or [''])[0]}"[:300]
        if isinstance(problem, WrongGraphError):
            from diticli.tuning.tune import REPORT_TO  # here, as it is seldom needed

            self._reporter.warn(f"{begin}: it was WRONG on this GPU ({problem}). {REPORT_TO} {off}")
            return
        self._reporter.warn(f"{begin}: it could not be captured ({what}). {off}")


def _has_dropout(objective: nn.Module) -> bool:
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in objective.modules())


def _zero_gradients(objective: nn.Module) -> dict[str, str]:
    """Parameters whose gradient is rounding alone, and those beside whose gradients it is nothing.

    A key's bias adds one number to all scores of a query, which softmax does not see.
    """
    names = [name for name, module in objective.named_modules() if isinstance(module, SelfAttention)]
    return {f"{name}.to_k.bias": f"{name}.to_k.weight" for name in names}


def _shapes(inputs: Inputs) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in inputs.items()}


def _places(objective: nn.Module) -> list[int]:
    return [value.data_ptr() for values in (objective.parameters(), objective.buffers()) for value in values]


def _norms(results: Results) -> dict[str, float]:
    """Waits for the device, once."""
    found = {name: x.float().norm() for name, x in results.items() if x is not None}
    return dict.fromkeys(results, 0.0) | dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))


def _distances(found: Results, wanted: Results) -> dict[str, float]:
    """Norms of the differences; infinite where only one of both is there."""
    both = {name: x - y for name, x in found.items() if x is not None and (y := wanted[name]) is not None}
    alone = {name: math.inf for name in wanted if (found[name] is None) != (wanted[name] is None)}
    return _norms(dict.fromkeys(wanted) | both) | alone


@contextlib.contextmanager
@torch.no_grad()
def _signs_turned(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The weights with other signs within the block, which is exact there and back."""
    torch._foreach_neg_(list(parameters))
    try:
        yield
    finally:
        torch._foreach_neg_(list(parameters))
