"""Compile functions with torch.compile, saying why where it fails, and capture them as CUDA graphs.

`CompiledPart` compiles the parts of an objective, a sampler's step or an encoder; `should_compile` says for which runs.
`StepGraph` captures a sampler's step, or a training step's losses and gradients: a GPU waits for Python to launch the
next kernel, and capturing takes a few steps' time where compiling takes longer than a whole edit.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from diti_kernels.sites import capturing, is_recording

from diticli.config import RunConfig
from diticli.models.device import resolve_precision
from diticli.models.layout import layout_choice
from diticli.progress import Reporter
from diticli.variables import CUDA_GRAPH, CUDA_GRAPH_CHOICES, word_of

CompilablePart = Callable[..., Any]
"""A function of tensors."""

Compiler = Callable[[str, CompilablePart], CompilablePart]
"""(name for people, function) -> the same function, faster."""

LARGEST_BATCH = 16
"""Batches up to which a sampler's step is captured, where nothing was measured: larger ones keep a GPU busy."""

CAPTURED_DEVICES = ("cuda",)
"""Types of devices on which training steps are captured."""

CPU_STEPS = {"fp32": 5_000, "bf16": 20_000}
"""Steps, by precision, from which a run on a CPU is compiled.

On a CPU most of a step is convolutions, which a compiler leaves to oneDNN. Measured on faces32 with one thread, beside
other work: a compiled step was 1.12 to 1.15 times as fast in fp32 and 1.01 to 1.04 times in bf16, and compiling took as
long as 60 to 175 steps. That is won back within 1,600 steps in fp32, and 15,000 in bf16 at the worst. In fp32 that
holds for NCHW maps alone: in channels_last, whose norms run in C either way, a compiled step of faces32 took 1.05 times
as long, so that such runs are never compiled.
"""

CUDA_STEPS, CUDA_MINUTES = 10_000, 30.0
"""Steps, or minutes of a run that is planned by time, from which a run on a GPU is compiled that cannot be captured.

Unmeasured: compiling three graphs takes minutes, which `faces64` (15,626 steps) may win back and the demo may not.
"""

MOST_VARIANTS = 64
"""Graphs of one function, of all its instances together: every frozen pair of a process compiles two shapes."""


class CompiledPart:
    """A function, compiled as one graph when it is first called.

    The reporter gets a note when that begins and when it ends. Where it fails, the reporter is warned once, with the
    reason, and the function runs uncompiled from then on: the result is the same.

    Args:
        name: what it is, for the message.
        function: of tensors of fixed shapes; under autograd or without.
        reporter: receiver of the message.
    """

    def __init__(self, name: str, function: CompilablePart, reporter: Reporter) -> None:
        self.name, self.function, self.reporter = name, function, reporter
        self._compiled: CompilablePart | None = torch.compile(function, fullgraph=True, dynamic=False)
        self._called = False

    def __call__(self, *arguments: Any) -> Any:
        """The function's result."""
        if self._compiled is None or is_recording():  # what is recorded takes seconds, compiling minutes
            return self.function(*arguments)
        if self._called:
            return self._run(arguments)
        self.reporter.note(f"Compiling the {self.name}, once, before its first use ...")
        self._called, began = True, time.monotonic()
        result = self._run(arguments)
        if self._compiled is not None:
            self.reporter.note(f"Compiled the {self.name} in {time.monotonic() - began:.0f} s.")
        return result

    def _run(self, arguments: tuple[Any, ...]) -> Any:
        assert self._compiled is not None
        # Imported here: these modules take a second, and only compiled runs need them.
        from torch._dynamo import config as dynamo
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._functorch import config

        try:
            # Otherwise the backward pass is compiled within `backward`, where nothing could take over from it.
            with config.patch(force_non_lazy_backward_lowering=True), dynamo.patch(recompile_limit=MOST_VARIANTS):
                return self._compiled(*arguments)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self._compiled = None
            self.reporter.warn(f"torch.compile failed on the {self.name}, which runs uncompiled: {_reason(error)}")
        return self.function(*arguments)


def _reason(error: Exception) -> str:
    """Kind and first line of the error, or of the compiler's own within it."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return ": ".join([type(inner).__name__, *lines[:1]])


def should_compile(config: RunConfig, device: torch.device, least: float | None = None) -> bool:
    """What `compile = "auto"` means: yes for runs of at least `least` steps.

    By default that is `CUDA_STEPS` on a GPU and `CPU_STEPS` on a CPU, where fp32 in channels_last never is.

    The steps are those of all stages that the run trains; auto precision is that of the device. Where they are not
    known yet, as the run is planned by time, it is compiled on a GPU from `CUDA_MINUTES` on, and never on a CPU.
    """
    cuda = device.type == "cuda"
    if config.minutes:
        return cuda and config.minutes >= CUDA_MINUTES and least != math.inf
    if least is None:
        least = CUDA_STEPS if cuda else _cpu_steps(config, device)
    trains_base = not config.base_model and not config.ssl.only
    return config.features.steps + (config.base.steps if trains_base else 0) >= least


def _cpu_steps(config: RunConfig, device: torch.device) -> float:
    precision = resolve_precision(config.precision, device)
    in_c = precision == "fp32" and layout_choice(device, torch.float32).name == "channels_last"
    return math.inf if in_c else CPU_STEPS[precision]


def compiler_for(reporter: Reporter) -> Compiler:
    """A `Compiler` that tells `reporter` where it fails."""
    return lambda name, function: CompiledPart(name, function, reporter)


class StepGraph:
    """A function of CUDA tensors of fixed shapes, captured once and replayed.

    Args:
        step: launches kernels on its inputs, and neither waits for nor reads from the device.
        inputs: of the shapes and dtypes that all calls will have.
        gradients: whether autograd records the step, which differentiates by itself; its inputs want a gradient where
            these do.

    The graph is captured on the device of the inputs, whichever is current. Each device has one side stream, which is
    kept: cuBLAS holds a workspace for every stream.
    """

    _sides: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}
    _capturing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, step: Callable[..., Any], *inputs: torch.Tensor, gradients: bool = False) -> None:
        self._device = inputs[0].device
        # Buffers made under inference mode could not be written to outside it.
        with (
            self._capturing,
            capturing(),
            torch.inference_mode(False),
            torch.set_grad_enabled(gradients),
            torch.cuda.device(self._device),
        ):
            self._inputs = [x.clone().detach().requires_grad_(gradients and x.requires_grad) for x in inputs]
            side = self._side()
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):  # around the capture too, which leaves its stream the current one if it fails
                for _ in range(3):  # libraries choose and initialise their algorithms before the capture
                    step(*self._inputs)
                self._graph = torch.cuda.CUDAGraph()
                # "thread_local": other threads may allocate pinned memory meanwhile, as those that feed a training do.
                with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                    self._output = step(*self._inputs)
            torch.cuda.current_stream(self._device).wait_stream(side)

    def _side(self) -> torch.cuda.Stream:
        if self._device not in self._sides:
            self._sides[self._device] = torch.cuda.Stream(self._device)
        return self._sides[self._device]

    @torch.no_grad()
    def fill(self, *inputs: torch.Tensor) -> None:
        """Copy the inputs of the next `replay`, without waiting; of the host's tensors only scalars are allowed."""
        for mine, value in zip(self._inputs, inputs, strict=True):
            if value.device.type == "cpu" and mine.device.type != "cpu":
                mine.fill_(value.item())
            else:
                mine.copy_(value, non_blocking=True)

    def replay(self) -> Any:
        """The step on the inputs of the last call, in memory that the next call overwrites."""
        self._graph.replay()
        return self._output

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """`step(*inputs)`, one tensor, in memory of its own."""
        with torch.cuda.device(self._device):
            self.fill(*inputs)
            output: torch.Tensor = self.replay()
            return output.clone()


def may_capture_steps(device: torch.device, *, processes: int, views: bool) -> bool:
    """Whether losses and gradients of training steps may be captured: unless DITI_CUDA_GRAPH=0.

    On a GPU, by one process; several exchange gradients meanwhile. A self-supervised loss, of `views`, sets in later,
    and its batch norm counts by itself.
    """
    alone = processes == 1 and not views
    return device.type in CAPTURED_DEVICES and alone and word_of(CUDA_GRAPH, CUDA_GRAPH_CHOICES) == "1"


def may_capture(x: torch.Tensor) -> bool:
    """Whether a batch can be captured: on a GPU, unless DITI_CUDA_GRAPH=0."""
    return x.is_cuda and len(x) > 0 and word_of(CUDA_GRAPH, CUDA_GRAPH_CHOICES) == "1"


def should_capture(x: torch.Tensor) -> bool:
    """Whether a batch that may be captured is small enough, where it was not measured (`diticli.tuning.graphs`)."""
    return may_capture(x) and len(x) <= LARGEST_BATCH
