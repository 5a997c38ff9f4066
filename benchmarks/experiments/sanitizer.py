"""Whether a Triton kernel ever touches memory outside its tensors, by the sanitizer of triton-viz, without a GPU.

    python -m benchmarks.experiments.sanitizer --viz CHECKOUT [--out FILE.json]

In an environment with Triton 3.6.0 and what CHECKOUT (github.com/Deep-Learning-Profiling-Tools/triton-viz at 203b0c7)
needs: z3-solver, anytree, ml_dtypes, pyarrow, flask. Release 3.0 of triton-viz cannot be imported beside Triton 3.9,
and beside 3.6 it follows none of our kernels: neither reductions along an axis nor indices that are loaded.

The sanitizer runs a kernel in Triton's interpreter with symbols for its indices and asks a solver for one that lies
outside the tensor. So it also sees reads whose values are dropped later, which no comparison of results does. The two
mistakes at the end show that it would.

Both operations run at odd shapes: one pass and three kernels, a skip of another width, groups that need padding,
windows that are empty, reversed or reach beyond the features, timesteps outside the table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diti_kernels.adaptive_group_norm import launch

from benchmarks.facts import collect, write
from benchmarks.resources import source_hash
from benchmarks.table import render

NORMS = ((2, 15, 6, 0, 2), (1, 35, 3, 6, 3), (2, 1, 5, 7, 4), (1, 1100, 10, 14, 4), (2, 1030, 6, 0, 1))
"""Samples, positions, channels of x and of skip, groups; from 1,025 positions on there are three kernels each way."""
LINEARS = ((3, 11, 7), (1, 1, 1), (17, 65, 33))
"""Samples, features, embedding dims."""
COMMIT = "203b0c7"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all, print a table; 1 where the sanitizer finds something, or does not find the mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viz", type=Path, required=True, help=f"a checkout of triton-viz, measured with {COMMIT}")
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(options.viz))
    found = traced()
    rows = []
    for name, run in cases():
        found.clear()
        rows.append({"case": name, "mistake": name.startswith("mistake"), **outcome(run, found)})
        print(f"{name}: {rows[-1]['outcome']}", flush=True)
    print(render(["case", "kernels", "outcome"], [[r["case"], len(r["kernels"]), r["outcome"]] for r in rows]))
    if options.out is not None:
        facts = {"what": "out-of-bounds accesses by triton-viz's sanitizer", **collect(torch.device("cpu"))}
        facts["versions"] |= {"triton": version("triton"), "triton-viz": COMMIT}
        facts["command"] = "python -m benchmarks.experiments.sanitizer --viz CHECKOUT"
        write(options.out, facts | {"kernels": source_hash(), "rows": rows})
    return int(any((row["outcome"] == "in bounds") == row["mistake"] for row in rows))


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and launches."""
    for B, N, C1, C2, groups in NORMS:
        yield f"norm {B}x{N}x{C1}+{C2}, {groups} groups", lambda shape=(B, N, C1, C2, groups): norm(*shape)
    for shape in LINEARS:
        yield "masked_linear " + "x".join(map(str, shape)), lambda shape=shape: linear(*shape)
    yield "mistake: a position too many", position_too_many
    yield "mistake: a timestep too many", timestep_too_many


def norm(B: int, N: int, C1: int, C2: int, groups: int) -> None:
    """Forward and backward."""
    x, grad = torch.randn(B, N, C1), torch.randn(B, N, C1 + C2)
    skip = torch.randn(B, N, C2) if C2 else None
    scale, mean = torch.ones(B, C1 + C2), torch.ones(B, groups)
    launch.triton_forward(x, skip, scale, scale, groups, 1e-5, True)
    launch.triton_backward(grad, x, skip, scale, scale, mean, mean, groups, True, (True, C2 > 0))


def linear(B: int, D: int, E: int) -> None:
    """Forward, dz and dW."""
    from diti_kernels.masked_linear import op

    z, weight, bias, grad = torch.randn(B, D), torch.randn(E, D), torch.randn(E), torch.randn(B, E)
    visible = torch.tensor([[0, D], [D // 2, D // 2], [D, 0], [-3, D + 5], [D // 3, D]])
    t = torch.tensor([0, 1, 2, 3, 4, -1, 5, 99]).repeat(B)[:B]
    op.masked_linear_op._init_fn(z, t, visible, None, weight, bias)
    op.masked_linear_dz_op._init_fn(grad, t, visible, visible, weight)
    op.masked_linear_dw_op._init_fn(grad, z, t, visible)


def position_too_many() -> None:
    """A norm of 15 positions that is given 16."""
    from diti_kernels.adaptive_group_norm import triton_kernels as kernels

    x, scale, mean = torch.randn(1, 15, 6), torch.ones(1, 6), torch.ones(1, 2)
    kernels.adaptive_group_norm_fwd_one_pass_kernel[(1, 1)](
        x, None, scale, scale, torch.empty(1, 16, 6), mean, mean, 16, 6, 0, 2, 1e-5,
        HAS_SKIP=False, SILU=True, D=3, BLOCK_N=16, BLOCK_G=2, BLOCK_D=4,
    )  # fmt: skip


def timestep_too_many() -> None:
    """A table of windows that is a row shorter than the kernel is told."""
    from diti_kernels.masked_linear import triton_kernels as kernels

    z, weight, out = torch.randn(3, 5), torch.randn(4, 5), torch.empty(3, 4)
    t, visible = torch.tensor([0, 1, 2]), torch.tensor([[0, 5], [0, 5]])
    kernels.masked_linear_fwd_kernel[(1, 1)](
        z, t, visible, weight, None, out, 3, 3, 5, 4, 5, 1, 1, 5, 1,
        HAS_BIAS=False, BLOCK_B=16, BLOCK_E=16, BLOCK_D=16,
    )  # fmt: skip


def outcome(run: Callable[[], object], found: list[tuple[str, Any]]) -> dict[str, Any]:
    """What the sanitizer says of each kernel that runs."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run()
    except Exception as error:  # of the sanitizer, which does not know all of Triton
        trace = traceback.extract_tb(error.__traceback__)[-1]
        why = f"not followed: {type(error).__name__}: {str(error).splitlines()[0]} ({Path(trace.filename).name})"
        return {"kernels": [name for name, _ in found], "outcome": why}
    wrong = [name for name, client in found if client.records]
    return {
        "kernels": [name for name, _ in found],
        "outcome": f"OUT OF BOUNDS: {', '.join(wrong)}" if wrong else "in bounds",
    }


def traced() -> list[tuple[str, Any]]:
    """Let the sanitizer run all kernels; name and sanitizer of each launch are kept in the list that is returned."""
    import triton_viz
    from diti_kernels.adaptive_group_norm import triton_kernels as norms
    from diti_kernels.masked_linear import triton_kernels as linears
    from triton_viz.clients import Sanitizer

    complete()
    found: list[tuple[str, Any]] = []

    class Kernel:
        """One kernel, with a sanitizer of its own at each launch."""

        def __init__(self, name: str, function: Any) -> None:
            self.name, self.function = name, function

        def __getitem__(self, grid: Any) -> Callable[..., object]:
            client = Sanitizer(abort_on_error=False)
            found.append((self.name, client))
            launched: Callable[..., object] = triton_viz.trace(client=client)(self.function)[grid]
            return launched

    for module in (norms, linears):
        for name, function in list(vars(module).items()):
            if name.endswith("_kernel"):
                setattr(module, name, Kernel(name.removesuffix("_kernel"), function))
    return found


def complete() -> None:
    """What triton-viz lacks of loaded values: their least and largest as the ends of a loop, comparisons as choices."""
    import z3
    from triton_viz.clients import symbolic_engine as engine

    def concretize(self: Any) -> Any:
        axis = None if self.axis is None else int(self.axis.to_py())
        data = {"min": np.min, "max": np.max}[self.op](self.input.concretize().data, axis=axis)
        return engine.SymbolicTensorValue(np.atleast_1d(data), self.dtype)

    def choose(condition: Any, *values: Any) -> Any:
        return z3.If(condition if z3.is_bool(condition) else condition != 0, *values)

    engine.ReduceSymbolicExpr.concretize, engine.If = concretize, choose


if __name__ == "__main__":
    raise SystemExit(main())
