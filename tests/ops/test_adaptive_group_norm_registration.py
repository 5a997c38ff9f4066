"""The adaptive group norm as an operator: opcheck, one graph under torch.compile, tiles, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from diti_kernels.adaptive_group_norm import adaptive_group_norm
from diti_kernels.adaptive_group_norm.launch import plan
from diti_kernels.adaptive_group_norm.layout import to_rows
from diti_kernels.adaptive_group_norm.registration import adaptive_group_norm_backward_op, adaptive_group_norm_op
from norm_cases import assert_near, make_case, run
from op_sites import Site
from torch import Tensor


@pytest.mark.parametrize("skip", [0, 5])
def test_opcheck(site: Site, skip: int) -> None:
    case = make_case((2, 10 if skip else 15, 3, 3), 3, skip).to(site.device)
    rows = [None if t is None else to_rows(t.detach()) for t in (case.x, case.skip, case.grad)]
    leaves = [None if t is None else t.clone().requires_grad_() for t in rows[:2]]
    triton = site.backend == "triton"
    # Called with gradients: the registered formula is what is checked.
    torch.library.opcheck(adaptive_group_norm_op, (*leaves, case.scale, case.shift, 3, 1e-5, True, triton))
    modulations = (case.scale.detach(), case.shift.detach())
    _, mean, rstd = adaptive_group_norm_op(*rows[:2], *modulations, 3, 1e-5, True, triton)
    for wants in ((True, skip > 0), (False, False)):
        torch.library.opcheck(
            adaptive_group_norm_backward_op,
            (rows[2], *rows[:2], *modulations, mean, rstd, 3, True, triton, *wants),
        )


@pytest.mark.parametrize(("memory", "autocast"), [("contiguous", False), ("channels_last", True)])
def test_compiles_into_one_graph(site: Site, memory: str, autocast: bool) -> None:
    def block(x: Tensor, *arguments: object, **options: object) -> Tensor:
        with torch.autocast(site.device, site.low_precision, enabled=autocast):
            return adaptive_group_norm(x * 2, *arguments, **options) * 2

    # Inductor needs a C++ compiler on the CPU; tracing is what is at stake there.
    backend = "inductor" if site.device == "cuda" else "aot_eager"
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
    for B in (2, 3):
        case = make_case((B, 10, 4, 5), 3, 5, memory=memory).to(site.device)
        assert_near(run(compiled, case), run(block, case), 4e-6)


@pytest.mark.parametrize("channels", [32, 64, 192, 384, 640, 1024])
@pytest.mark.parametrize("positions", [1, 16, 256, 1000, 1024, 4096, 16384])
def test_tiles_cover_every_shape_within_their_size(channels: int, positions: int) -> None:
    for limit in (8192, 16384):
        chosen = plan(positions, channels, 32, limit)
        assert chosen.lanes >= channels // 32
        assert chosen.rows * (chosen.tiles or 1) >= positions
        assert chosen.rows * chosen.groups * chosen.lanes <= (limit if chosen.tiles is None else 4096)
        assert chosen.blocks(256)["num_warps"] in (1, 2, 4, 8, 16, 32)
        if chosen.tiles is None:
            assert positions <= 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 4}, r"6 channels do not divide into 4 groups. Choose a divisor of 6"),
        ({"groups": 0}, r"into 0 groups"),
        ({"activation": "relu"}, r"activation='relu' is unknown. Use 'silu' or 'none'"),
        ({"scale": torch.ones(2, 5)}, r"scale must be \[2, 6\], \[1, 6\] or \[6\], got \[2, 5\]"),
        ({"shift": torch.ones(2, 6, 1, 1)}, r"shift must be .* got \[2, 6, 1, 1\]"),
        ({"skip": torch.ones(2, 3, 4, 5)}, r"skip must equal x .* got \[2, 3, 4, 5\] beside \[2, 6, 4, 4\]"),
        ({"skip": torch.ones(2, 3, 4, 4)}, r"scale must be \[2, 9\]"),
        ({"x": torch.ones(6)}, r"x \[B, C, \*\].* got .*\[6\]"),
        ({"x": torch.ones(2, 6, 4, 4, dtype=torch.int64)}, r"floating point.*int64"),
        ({"scale": torch.ones(6, device="meta")}, r"one device, got \['cpu', 'meta'\]"),
    ],
)
def test_says_what_does_not_fit(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.ones(2, 6, 4, 4), "scale": torch.ones(6), "shift": torch.ones(6), "groups": 3} | change
    with pytest.raises(ValueError, match=message):
        adaptive_group_norm(**arguments)


def test_kernels_say_which_dtypes_they_take(triton_site: Site) -> None:
    case = make_case((2, 6, 4, 4), 3).to(triton_site.device, torch.float64)
    with pytest.raises(ValueError, match=r"'torch.bfloat16'.*got torch.float64. .*DITI_KERNELS=reference"):
        adaptive_group_norm(case.x, case.scale, case.shift, 3)
