"""What `torch.compile` makes of the adaptive group norm on a GPU: the Triton kernels that Inductor writes, without one.

    python -m benchmarks.experiments.compiled_norm [--channels 64 --size 64 --batch 128]

The definition (`reference.py`), which compiled networks use on a GPU, is traced with fake tensors of a GPU that is not
there, forward or with all gradients, and Inductor writes its code for an H100; nothing runs. Shown are, for each
kernel, what it reads and writes, and how many bytes in a row a group's reduction reads. Uses internals of
PyTorch 2.13.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from diti_kernels.adaptive_group_norm import adaptive_group_norm_reference

from benchmarks.table import render

GROUPS = 32
CUDA = torch.device("cuda", 0)
LIMITS = {
    "multi_processor_count": 132,
    "major": 9,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "warp_size": 32,
}
"""Of an H100."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the code, show what it moves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="height and width")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--show", action="store_true", help="also print the code")
    options = parser.parse_args(argv)
    rows = []
    for direction in ("forward", "with gradients"):
        code, times = generated(options.batch, options.channels, options.size, gradients=direction != "forward")
        if options.show:
            print(code)
        rows += [[direction, *row] for row in kernels(code)]
        rows.append([direction, "bytes by Inductor's count, in those of x", times, None, None])
    print(render(["direction", "kernel", "loads", "stores", "sums"], rows))
    width = options.channels // GROUPS * 2
    print(f"A group's channels lie {width} bytes in a row in bf16, and rows {2 * options.channels} bytes apart.")
    return 0


def generated(batch: int, channels: int, size: int, *, gradients: bool) -> tuple[str, float]:
    """Python with Triton kernels, and the bytes that they move where each kernel reads a tensor once, in those of x."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
        leaves = [leaf.detach().requires_grad_(gradients) for leaf in (x, scale, shift)]
        y = adaptive_group_norm_reference(*leaves, GROUPS)
        return [y, *(torch.autograd.grad(y, leaves, grad) if gradients else ())]

    def fakes(device: torch.device) -> tuple[torch.Tensor, ...]:
        x = torch.empty(batch, channels, size, size, device=device, dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last)
        return (x, *(torch.empty(batch, channels, device=device) for _ in range(2)), torch.empty_like(x))

    mode = FakeTensorMode()
    with mode:  # a build of PyTorch for the CPU has autograd there alone
        plain = make_fx(norm, decomposition_table=select_decomp_table())(*fakes(torch.device("cpu")))
    with as_on_an_h100():
        with mode, torch.no_grad():
            inputs = fakes(CUDA)
            traced = make_fx(plain)(*inputs)
        with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            graph = GraphLowering(traced, example_inputs=inputs)
            with V.set_graph_handler(graph):
                graph.run(*inputs)
                code = graph.codegen()[0]
                moved = graph.count_bytes()[0]
    return str(getattr(code, "value", code)), moved / (inputs[0].numel() * inputs[0].element_size())


def kernels(code: str) -> Iterator[list[Any]]:
    """Name, loads, stores and sums of each kernel; the loads of a loop count once."""
    for name, body in re.findall(r"@triton\.jit\ndef (\w+)\(.*?\):\n(.*?)\n'''", code, flags=re.DOTALL):
        yield [name, *(body.count(word) for word in ("tl.load(", "tl.store(", "tl.sum("))]


@contextlib.contextmanager
def as_on_an_h100() -> Iterator[None]:
    """PyTorch takes a GPU to be there within the block, until something runs on it."""
    import triton
    from torch._inductor.runtime.hints import DeviceProperties
    from triton.backends.compiler import GPUTarget

    class Driver:
        """Knows its target only."""

        def get_current_device(self) -> int:
            return 0

        get_current_stream = get_current_device

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

    hints = DeviceProperties(type="cuda", index=0, cc=90, **LIMITS)
    properties = SimpleNamespace(name="NVIDIA H100", minor=0, total_memory=80 << 30, **LIMITS)
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(Driver())
    try:
        with contextlib.ExitStack() as stack:
            for name, value in {
                "is_available": True, "current_device": 0, "device_count": 1, "get_device_capability": (9, 0),
                "get_device_properties": properties, "_lazy_init": None,
            }.items():  # fmt: skip
                stack.enter_context(mock.patch.object(torch.cuda, name, return_value=value))
            stack.enter_context(mock.patch.object(DeviceProperties, "create", return_value=hints))
            stack.enter_context(mock.patch.object(torch.utils._triton, "triton_hash_with_backend", return_value=""))
            yield
    finally:
        triton.runtime.driver._active = before


if __name__ == "__main__":
    raise SystemExit(main())
