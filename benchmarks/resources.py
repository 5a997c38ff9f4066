"""What the compiler says of every Triton kernel at every site, on a machine without a GPU.

    python -m benchmarks resources --out benchmarks/results/NAME.json

Every launch of the presets' sites is compiled with the plan that it has in use, and nothing runs: Triton's own
assembler makes the machine code, and its `cuobjdump` says what a thread and a program of it take. From that follow how
many programs a multiprocessor holds. A stack means that registers spill to memory. Speed is not measured: `least_ms` is
the time that the bytes of the formula take at the bandwidth that the vendor states.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import subprocess
import tempfile
import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diti_kernels
import torch
from diti_kernels.dispatch import LAUNCH_OPTIONS

from benchmarks.facts import collect, write
from benchmarks.kernel_sites import GROUPS, LATENT_DIM, SITES, TIMESTEPS, Site
from benchmarks.table import render

HEADERS = ["site", "kernel", "chip", "warps", "registers", "stack", "shared", "programs", "occupancy", "load", "store"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
STREAMING, ONE_PASS = 0.5, 0.25


class Chip(NamedTuple):
    """Limits of a multiprocessor (CUDA C++ Programming Guide, compute capabilities), and a card's bandwidth."""

    warps: int
    programs: int
    shared: int  # bytes of a multiprocessor
    most_shared: int  # bytes of a program
    card: str
    bandwidth: float  # bytes a second


CHIPS = {
    80: Chip(64, 32, 164 << 10, 163 << 10, "A100 80 GB", 2.039e12),
    90: Chip(64, 32, 228 << 10, 227 << 10, "H100 SXM", 3.35e12),
    100: Chip(64, 32, 228 << 10, 227 << 10, "B200", 8.0e12),
    120: Chip(48, 24, 100 << 10, 99 << 10, "RTX 5090", 1.792e12),
}


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one kernel takes.

    Attributes:
        kernel: its name without the operation's.
        chip: compute capability, 90 for 9.0.
        warps: of a program.
        registers: of a thread.
        stack: bytes of a thread; registers that did not fit.
        shared: bytes of a program.
        programs: that a multiprocessor holds at once.
        occupancy: its warps in use, of those it can hold.
        load: bytes of the widest load from memory.
        store: of the widest store.
        forbidden: atomics and TF32 instructions.
    """

    kernel: str
    chip: int
    warps: int
    registers: int
    stack: int
    shared: int
    programs: int
    occupancy: float
    load: int
    store: int
    forbidden: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print a table, write JSON where asked. 1 where a gate fails."""
    options = _parse(argv)
    chips = tuple(int(chip) for chip in options.chips.split(","))
    rows = [row for site in SITES if options.site in site.name for row in _rows_of(site, options, chips)]
    print(render(HEADERS, [[row["site"], *(row[name] for name in HEADERS[1:])] for row in rows]))
    broken = [
        f"{row['site']} {row['dtype']} {row['kernel']} sm_{row['chip']}: {why}" for row in rows for why in row["broken"]
    ]
    print("\n".join(broken) or f"all gates hold: {len(rows)} kernels, none has a stack")
    if options.out is not None:
        chosen = {chip: CHIPS[chip]._asdict() for chip in chips}
        facts = {"what": "resources of the Triton kernels, compiled and not run", **collect(torch.device("cpu"))}
        write(options.out, facts | {"kernels": source_hash(), "chips": chosen, "rows": rows, "traffic": traffic(rows)})
    return int(bool(broken))


def _rows_of(site: Site, options: argparse.Namespace, chips: Sequence[int]) -> Iterator[dict[str, Any]]:
    for dtype in options.dtypes.split(","):
        for usage in usages(site, DTYPES[dtype], options.batch, chips):
            moved = bytes_moved(usage.kernel, site, DTYPES[dtype].itemsize, options.batch)
            least = None if moved is None else moved / CHIPS[usage.chip].bandwidth * 1e3
            what = {"site": site.name, "dtype": dtype, "batch": options.batch, **asdict(usage)}
            yield what | {"bytes": moved, "least_ms": least, "broken": broken_gates(usage, site)}


def usages(site: Site, dtype: torch.dtype, batch: int, chips: Sequence[int]) -> list[Usage]:
    """Every kernel that one forward and one backward of the site launch."""
    found: dict[tuple[str, int], Usage] = {}
    for chip in chips:
        with compiled_only(chip, lambda kernel, chip=chip: found.update({(kernel.name, chip): usage(kernel, chip)})):
            _launch(site, dtype, batch)
    return list(found.values())


@contextmanager
def compiled_only(chip: int, see: Callable[[Any], None]) -> Iterator[None]:
    """Launches of Triton's functions are compiled for a chip that need not be here, and shown instead of run."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Driver:
        """A GPU of which only the chip is known; its number keeps Triton's variants of each chip apart."""

        def get_current_device(self) -> int:
            return chip

        def get_current_stream(self, _: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", chip, 32)

    run, before = JITFunction.run, triton.runtime.driver._active

    def compiled(kernel: Any, *args: Any, **kwargs: Any) -> None:
        see(run(kernel, *args, **(kwargs | {"warmup": True})))

    triton.runtime.driver.set_active(Driver())
    JITFunction.run = compiled
    try:
        yield
    finally:
        JITFunction.run = run
        triton.runtime.driver._active = before


def usage(compiled: Any, chip: int) -> Usage:
    """What the assembler gave one compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [_tool("cuobjdump"), "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    taken = {name: int(count) for name, count in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    ptx, warps = compiled.asm["ptx"], compiled.metadata.num_warps
    shared = max(taken["SHARED"], compiled.metadata.shared)
    programs = resident(taken["REG"], warps, shared, CHIPS[chip])
    return Usage(
        kernel=re.sub(r"^(adaptive_group_norm|masked_linear)_|_kernel$", "", compiled.name),
        chip=chip,
        warps=warps,
        registers=taken["REG"],
        stack=taken["STACK"] + taken["LOCAL"],
        shared=shared,
        programs=programs,
        occupancy=programs * warps / CHIPS[chip].warps,
        load=_widest(ptx, "ld"),
        store=_widest(ptx, "st"),
        forbidden=tuple(sorted(set(re.findall(r"\b(?:atom|red)\.|tf32", ptx)))),
    )


def resident(registers: int, warps: int, shared: int, chip: Chip) -> int:
    """Programs that a multiprocessor holds: 65,536 registers, given to a warp in units of 256, in four quarters."""
    warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // 4 // warp * 4 // warps
    by_shared = chip.shared // (shared + 1024)  # the system keeps 1 kB of each
    return min(by_registers, by_shared, chip.warps // warps, chip.programs)


def broken_gates(usage: Usage, site: Site) -> list[str]:
    """What a kernel must keep and does not."""
    least = ONE_PASS if "one_pass" in usage.kernel else STREAMING
    # Merges and the projection are small: their programs do not fill a GPU, so that nothing is gained by more of them.
    small = "merge" in usage.kernel or site.operation == "masked_linear"
    wide = small or not _whole(site)
    gates = {
        f"{usage.stack} bytes of stack": usage.stack == 0,
        f"occupancy {usage.occupancy:.0%}, least {least:.0%}": small or usage.occupancy >= least,
        f"loads of {usage.load} bytes, least 16": wide or usage.load >= 16,
        f"stores of {usage.store} bytes, least 16": wide or not _writes(usage) or usage.store >= 16,
        f"{usage.shared} bytes of shared memory": usage.shared <= min(chip.most_shared for chip in CHIPS.values()),
        f"forbidden instructions {usage.forbidden}": not usage.forbidden,
    }
    return [text for text, holds in gates.items() if not holds]


def bytes_moved(kernel: str, site: Site, element: int, batch: int) -> int | None:
    """Bytes of tensors of x's size that a kernel of the norm reads and writes, by the op's README; None for others."""
    passes = {"fwd_one_pass": 2, "fwd_moments": 1, "fwd_apply": 2, "bwd_one_pass": 3, "bwd_sums": 2, "bwd_dx": 3}
    if site.operation != "norm" or kernel not in passes:
        return None
    return passes[kernel] * batch * (site.channels + site.skip) * site.size**2 * element


def traffic(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bytes of each norm's kernels together and the least time they take, beside those of the unfused sequence.

    Args:
        rows: of kernels, as the result holds them.
    """
    found: dict[tuple[Any, ...], int] = {}
    for row in rows:
        if row["bytes"] is not None:
            direction = row["kernel"].partition("_")[0]
            key = (row["site"], row["dtype"], row["batch"], row["chip"], direction)
            found[key] = found.get(key, 0) + row["bytes"]
    sites = {site.name: site for site in SITES}
    return [
        {
            **dict(zip(("site", "dtype", "batch", "chip", "direction"), key, strict=True)),
            "bytes": moved,
            "least_ms": moved / CHIPS[key[3]].bandwidth * 1e3,
            "unfused_bytes": (usual := _usual_bytes(sites[key[0]], DTYPES[key[1]].itemsize, key[2], key[4])),
            "unfused_least_ms": usual / CHIPS[key[3]].bandwidth * 1e3,
        }
        for key, moved in found.items()
    ]


def _usual_bytes(site: Site, element: int, batch: int, direction: str) -> int:
    """Of concatenation, norm, scale, shift and SiLU in their own passes, all in one dtype; see the op's README."""
    passes = {"fwd": 5 + 4, "bwd": 11 + 4}[direction] + 2 * bool(site.skip)
    return passes * batch * (site.channels + site.skip) * site.size**2 * element


def source_hash() -> str:
    """Of the code that the kernels are compiled from, without comments: a result with another one is stale."""
    root = Path(diti_kernels.__path__[0])
    names = ("triton_kernels.py", "triton_tiles.py", "launch.py")
    files = [root / "masked_linear" / "op.py", *(p for n in names for p in root.glob(f"*/{n}"))]
    code = [str(LAUNCH_OPTIONS), *(_code(file) for file in sorted(files))]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]


def _code(file: Path) -> str:
    """The words of a Python file, without comments and docstrings."""
    words, starts = [], True
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type in _LAYOUT:
            starts = starts or token.type == tokenize.NEWLINE
            continue
        if not (starts and token.type == tokenize.STRING):
            words.append(token.string)
        starts = False
    return " ".join(words)


_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def _whole(site: Site) -> bool:
    """Whether channels of a group need no padding, so that a row is one plain range of memory."""
    width = (site.channels + site.skip) // GROUPS
    return width & (width - 1) == 0


def _writes(usage: Usage) -> bool:
    """Whether a kernel writes a tensor of x's size."""
    return any(part in usage.kernel for part in ("one_pass", "apply", "dx"))


def _launch(site: Site, dtype: torch.dtype, batch: int) -> None:
    """The site's launches, on tensors without memory."""
    if site.operation == "norm":
        from diti_kernels.adaptive_group_norm import launch

        positions, C = site.size**2, site.channels + site.skip
        x, grad = (torch.empty(batch, positions, c, dtype=dtype, device="meta") for c in (site.channels, C))
        skip = torch.empty(batch, positions, site.skip, dtype=dtype, device="meta") if site.skip else None
        scale, mean = (torch.empty(batch, size, device="meta") for size in (C, GROUPS))
        launch.triton_forward(x, skip, scale, scale, GROUPS, 1e-5, True)
        launch.triton_backward(grad, x, skip, scale, scale, mean, mean, GROUPS, True, (True, bool(site.skip)))
        return
    from diti_kernels.masked_linear import op

    z, weight = (torch.empty(n, LATENT_DIM, dtype=dtype, device="meta") for n in (batch, site.channels))
    grad, bias = (torch.empty(*s, site.channels, dtype=dtype, device="meta") for s in ((batch,), ()))
    t = torch.empty(batch, dtype=torch.int64, device="meta")
    table = torch.empty(TIMESTEPS, 2, dtype=torch.int64, device="meta")
    op.masked_linear_op._init_fn(z, t, table, None, weight, bias)
    op.masked_linear_dz_op._init_fn(grad, t, table, table, weight)
    op.masked_linear_dw_op._init_fn(grad, z, t, table)


def _widest(ptx: str, instruction: str) -> int:
    """Bytes of the widest access to global memory."""
    found = re.findall(rf"\b{instruction}\.global[.\w:]*?(?:\.v(\d))?\.b(\d+)\b", ptx)
    return max((int(count or 1) * int(bits) // 8 for count, bits in found), default=0)


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / name)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks resources",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    parser.add_argument("--batch", type=int, default=128, help="images; changes no kernel but only the bytes")
    parser.add_argument("--chips", default=",".join(map(str, CHIPS)), help="compute capabilities, e.g. 80,90")
    parser.add_argument("--dtypes", default="bf16,fp32", help="of x")
    parser.add_argument("--site", default="", help="only sites whose name contains this")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
