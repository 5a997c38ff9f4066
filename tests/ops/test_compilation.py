"""The kernels compile for a GPU that is not here: types and shapes that the interpreter does not check."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

import pytest
from op_sites import run_python

# For an H100 ("cuda") or an MI300 ("hip"): whether there is a binary, and what must not be in it.
BEGINNING = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diti_kernels.dispatch import LAUNCH_OPTIONS

def compiled(source):
    target = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}[kind]
    assembly = triton.compile(source, target=target, options=LAUNCH_OPTIONS).asm
    binary, text = {"cuda": ("cubin", "ptx"), "hip": ("hsaco", "amdgcn")}[kind]
    wrong = set(re.findall(r"\\b(?:atom|red)\\.|tf32|_atomic_|xf32|vgpr_spill_count: +[1-9]", assembly[text]))
    return binary in assembly, sorted(wrong)
"""

# Apart from this process, where the kernels may be decorated for the interpreter. The first variant of a
# kernel has everything at run time; in the second, arguments are constants, as Triton makes of None and 1.
COMPILE = """
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
        for kind in ("cuda", "hip"):
            print(kind, name, dtype, *compiled(source))
"""


# The second variant has every size that can be one at one: Triton makes constants of those.
COMPILE_NORM = """
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
        for kind in ("cuda", "hip"):
            print(kind, name, dtype, *compiled(source))
"""


needs_assembler = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs Triton's assembler")


@pytest.fixture(scope="module")
def compilations(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A line for each kernel and variant, of both targets."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    cache = str(tmp_path_factory.mktemp("cache"))
    return run_python(BEGINNING + COMPILE + COMPILE_NORM, TRITON_CACHE_DIR=cache).splitlines()


MASKED_LINEAR = ("fwd", "bwd_dz", "bwd_dw")
NORM = ("fwd_one_pass", "fwd_moments", "fwd_merge", "fwd_apply", "bwd_one_pass", "bwd_sums", "bwd_merge", "bwd_dx")


@needs_assembler
@pytest.mark.parametrize("kind", ["cuda", "hip"])
@pytest.mark.parametrize("names", [MASKED_LINEAR, NORM], ids=["masked linear", "norm"])
def test_kernels_compile_without_atomics_or_tf32(compilations: list[str], names: tuple[str, ...], kind: str) -> None:
    found = [line for line in compilations if line.split()[0] == kind and line.split()[1] in names]
    assert found == [f"{kind} {name} {dtype} True []" for name in names for dtype in ("fp32", "bf16")]


# The real launches as for a GPU: a driver that only knows its target, and `warmup` instead of running. Of every
# kernel the option, and of two the code.
COMPILE_LAUNCHES = """
import os, re, warnings
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from diti_kernels.adaptive_group_norm import launch
from diti_kernels.masked_linear import op

class Driver:
    get_current_device = get_current_stream = lambda *_: 0
    get_current_target = lambda _: GPUTarget("cuda", 90, 32)

named, codes = {}, {}
run = JITFunction.run
def compile_only(kernel, *args, **kwargs):
    named[kernel.__name__] = kwargs.get("enable_fp_fusion")
    if kernel.__name__ in ("adaptive_group_norm_fwd_apply_kernel", "masked_linear_bwd_dw_kernel"):
        for setting in (None, "0", "1"):
            os.environ.pop("TRITON_DEFAULT_FP_FUSION", None)
            os.environ.update({} if setting is None else {"TRITON_DEFAULT_FP_FUSION": setting})
            kernel.device_caches.clear()
            ptx = run(kernel, *args, **(kwargs | {"warmup": True})).asm["ptx"]
            codes.setdefault(kernel.__name__, []).append(ptx)

warnings.simplefilter("error")
triton.runtime.driver.set_active(Driver())
JITFunction.run = compile_only
for size in (8, 40):
    x, scale, mean = torch.ones(1, size * size, 8), torch.ones(1, 8), torch.ones(1, 2)
    launch.triton_forward(x, None, scale, scale, 2, 1e-5, True)
    launch.triton_backward(x, x, None, scale, scale, mean, mean, 2, True, (True, False))
z, t, table, weight = torch.ones(2, 8), torch.zeros(2, dtype=torch.int64), torch.tensor([[0, 8]]), torch.ones(4, 8)
op.masked_linear_op(z, t, table, None, weight, None)
op.masked_linear_dz_op(torch.ones(2, 4), t, table, None, weight)
op.masked_linear_dw_op(torch.ones(2, 4), z, t, table)
print(len(named), set(named.values()), [[len(set(ptx)), "fma.rn.f32" in ptx[0]] for ptx in codes.values()])
"""


@needs_assembler
def test_launches_name_their_fused_multiply_add(tmp_path: Path) -> None:
    """The same code whatever TRITON_DEFAULT_FP_FUSION says, whose default turns in Triton 3.10, and no warning."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    line = run_python(COMPILE_LAUNCHES, TRITON_CACHE_DIR=str(tmp_path))
    assert line == "11 {True} [[1, True], [1, True]]\n"
