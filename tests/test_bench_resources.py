"""What the compiler gives the Triton kernels: gates on the committed result, and a few sites compiled anew."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernel_sites import SITES
from benchmarks.resources import CHIPS, Usage, broken_gates, resident, source_hash

ROOT = Path(__file__).parent.parent
USAGE = Usage(
    kernel="bwd_one_pass", chip=90, warps=16, registers=100, stack=0, shared=2048, programs=1, occupancy=0.25, load=16,
    store=16, forbidden=(),
)  # fmt: skip


def test_the_committed_result_is_of_these_kernels_and_keeps_every_gate() -> None:
    file = max((ROOT / "benchmarks" / "results").glob("*-resources.json"))
    result = json.loads(file.read_text())
    remedy = f"python -m benchmarks resources --out benchmarks/results/{file.name}"
    assert result["kernels"] == source_hash(), f"the kernels or their plans have changed since: {remedy}"
    sites = {site.name: site for site in SITES}
    assert {(row["site"], row["chip"]) for row in result["rows"]} >= {
        (name, chip) for name in sites for chip in (80, 90)
    }
    for row in result["rows"]:
        usage = Usage(
            **{name: row[name] for name in Usage.__dataclass_fields__} | {"forbidden": tuple(row["forbidden"])}
        )
        assert resident(usage.registers, usage.warps, usage.shared, CHIPS[usage.chip]) == usage.programs
        assert broken_gates(usage, sites[row["site"]]) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs Triton's assembler")
@pytest.mark.parametrize("site", ["celeba64 norm 64+64", "celeba64 norm 512+512"])
def test_gates_hold_as_compiled_here(site: str, tmp_path: Path) -> None:
    """The sites with the most registers: streaming with a skip, and one pass backward."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "DITI_KERNELS")}
    command = [sys.executable, "-m", "benchmarks", "resources", "--chips", "80,90", "--dtypes", "bf16", "--site", site]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all gates hold" in done.stdout


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "chip", "programs"),
    [(255, 4, 0, 90, 2), (128, 16, 1024, 80, 1), (64, 16, 0, 90, 2), (32, 4, 0, 90, 16), (32, 4, 0, 120, 12),
     (32, 4, 99 << 10, 120, 1), (16, 1, 0, 120, 24)],
)  # fmt: skip
def test_resident_programs(registers: int, warps: int, shared: int, chip: int, programs: int) -> None:
    assert resident(registers, warps, shared, CHIPS[chip]) == programs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"occupancy": 0.125}, "occupancy 12%, least 25%"),
        ({"kernel": "bwd_sums"}, "occupancy 25%, least 50%"),
        ({"load": 8}, "loads of 8 bytes, least 16"),
        ({"store": 4}, "stores of 4 bytes, least 16"),
        ({"kernel": "bwd_dx", "occupancy": 0.5, "store": 8}, "stores of 8 bytes, least 16"),
        ({"shared": 1 << 20}, "1048576 bytes of shared memory"),
        ({"forbidden": ("red.",)}, "forbidden instructions"),
    ],
)
def test_each_gate_can_fail(change: dict[str, object], said: str) -> None:
    site = next(site for site in SITES if site.name == "celeba64 norm 512+512 8\u00b2")
    assert broken_gates(USAGE, site) == []
    (broken,) = broken_gates(
        Usage(**{name: getattr(USAGE, name) for name in Usage.__dataclass_fields__} | change), site
    )
    assert broken.startswith(said)
