"""The kernels compile for a GPU that is not here: types and shapes that the interpreter does not check."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

import pytest
from op_sites import run_python

# Apart from this process, where the kernels may be decorated for the interpreter. The first variant of a
# kernel has everything at run time; in the second, arguments are constants, as Triton makes of None and 1.
COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diti_kernels.masked_linear import triton_kernels

UNIT_STRIDES = {"stride_zd": 1, "stride_wd": 1, "stride_ge": 1, "stride_t": 1}
INDICES = ("t_ptr", "visible_ptr", "own_ptr")
VARIANTS = {
    ("fp32", "i64"): {"HAS_BIAS": True, "HAS_OWN": True},
    ("bf16", "i32"): {"HAS_BIAS": False, "bias_ptr": None, "HAS_OWN": False, "own_ptr": None, **UNIT_STRIDES},
}
for name in ("fwd", "bwd_dz", "bwd_dw"):
    kernel = getattr(triton_kernels, f"masked_linear_{name}_kernel")
    for (dtype, index), constants in VARIANTS.items():
        blocks = {"BLOCK_B": 32, "BLOCK_E": 32, "BLOCK_D": 64}
        fixed = {k: v for k, v in {**constants, **blocks}.items() if k in kernel.arg_names}
        types = {k: f"*{index}" if k in INDICES else f"*{dtype}" if "_ptr" in k else "i32"
                 for k in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=types | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
        assembly = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
        found = sorted(set(re.findall(r"\\b(?:atom|red)\\.|tf32", assembly["ptx"])))
        print(name, dtype, "cubin" in assembly, found)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs Triton's assembler")
def test_kernels_compile_without_atomics_or_tf32(tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    lines = run_python(COMPILE, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    kernels = ("fwd", "bwd_dz", "bwd_dw")
    assert lines == [f"{name} {dtype} True []" for name in kernels for dtype in ("fp32", "bf16")]


# The second variant has every size that can be one at one: Triton makes constants of those.
COMPILE_NORM = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diti_kernels.adaptive_group_norm import triton_kernels

BLOCKS = {"BLOCK_N": 64, "BLOCK_G": 8, "BLOCK_D": 4, "BLOCK_T": 16}
VARIANTS = {
    "fp32": {"HAS_SKIP": True, "SILU": True, "WANTS_X": True, "WANTS_SKIP": True, "D": 3},
    "bf16": {"HAS_SKIP": False, "SILU": False, "WANTS_X": True, "WANTS_SKIP": False, "skip_ptr": None, "D": 1,
             "N": 1, "C1": 1, "G": 1, "C": 1, "T": 1, "BLOCK_D": 1},
}
IN_DTYPE = ("x_ptr", "skip_ptr", "out_ptr", "grad_ptr", "dx_ptr", "dskip_ptr")
for name in ("fwd_one_pass", "fwd_moments", "fwd_merge", "fwd_apply",
             "bwd_one_pass", "bwd_sums", "bwd_merge", "bwd_dx"):
    kernel = getattr(triton_kernels, f"adaptive_group_norm_{name}_kernel")
    for dtype, constants in VARIANTS.items():
        fixed = {k: v for k, v in {**BLOCKS, **constants}.items() if k in kernel.arg_names}
        types = {k: f"*{dtype}" if k in IN_DTYPE else "*fp32" if "_ptr" in k else "fp32" if k == "eps" else "i32"
                 for k in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=types | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
        assembly = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
        found = sorted(set(re.findall(r"\\b(?:atom|red)\\.|tf32", assembly["ptx"])))
        print(name, dtype, "cubin" in assembly, found)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs Triton's assembler")
def test_norm_kernels_compile_without_atomics(tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    lines = run_python(COMPILE_NORM, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    passes = (
        "fwd_one_pass",
        "fwd_moments",
        "fwd_merge",
        "fwd_apply",
        "bwd_one_pass",
        "bwd_sums",
        "bwd_merge",
        "bwd_dx",
    )
    assert lines == [f"{name} {dtype} True []" for name in passes for dtype in ("fp32", "bf16")]
