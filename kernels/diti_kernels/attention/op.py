"""Where attention runs in C instead of PyTorch's `scaled_dot_product_attention` (SDPA).

Legend of shape suffixes: B batch, M query tokens, N key tokens, H heads, K channels of a head.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diti_kernels import native, sites
from diti_kernels.attention import compiled
from diti_kernels.dispatch import VARIABLE

LEAST_GAIN = 1.1
"""How many times as fast as SDPA: ties stay with PyTorch."""
TOKENS, CHANNELS = 256, (32, 64, 128)
"""At which this machine is measured. Fewer tokens, which take next to no time anyway, and wider heads are PyTorch's."""
MOST_TOKENS = 4096
"""Beyond, the scores of a few queries leave the caches."""
HEADS, READINGS = 2, 15


def serves(q_BMHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor) -> bool:
    """Whether `compiled.attend` takes these arguments, whose shapes belong together, and is faster with them here."""
    if torch.compiler.is_compiling() or q_BMHK.dtype != torch.float32 or not q_BMHK.is_cpu:
        return False
    if not pays(k_BNHK.shape[1], q_BMHK.shape[3]) or torch.is_autocast_enabled("cpu") or sites.depends_on_site("cpu"):
        return False
    recorded = torch.is_grad_enabled()
    for t in (q_BMHK, k_BNHK, v_BNHK):
        if type(t) not in native.PLAIN or t.stride(3) != 1 or (recorded and t.requires_grad) or not t.numel():
            return False
    return True


def pays(tokens: int, channels: int) -> bool:
    """Whether the C code runs for so many key tokens and channels of a head: it can, and was measured to be faster."""
    return _pays(tokens, channels, torch.get_num_threads(), os.environ.get(VARIABLE))


@functools.lru_cache(maxsize=4096)
def _pays(tokens: int, channels: int, threads: int, setting: str | None) -> bool:
    """`setting` is what `why` reads."""
    if channels % compiled.PANEL or channels > CHANNELS[-1] or not TOKENS <= tokens <= MOST_TOKENS:
        return False
    return why().functions is not None and measured(threads).pays(channels)


def why() -> native.Library:
    """The C code, or why it does not run."""
    return native.forbidden("cpu") or compiled.library()


class Measured(NamedTuple):
    """Milliseconds of SDPA and of the C code at `CHANNELS`; empty where nothing was measured."""

    times: dict[str, float]

    def gain(self, channels: int) -> float:
        """How many times as fast as SDPA with heads of so many channels, or the next that were measured."""
        if not self.times:
            return 0.0
        width = min(k for k in CHANNELS if k >= channels)
        return self.times[f"sdpa {width}"] / self.times[f"c {width}"]

    def pays(self, channels: int) -> bool:
        """Whether that is enough."""
        return self.gain(channels) >= LEAST_GAIN

    @property
    def reason(self) -> str:
        """Half a sentence for people."""
        if not self.times:
            return "not measured, DITI_TUNE=0"
        told = ", ".join(f"{self.gain(channels):.2g} at {channels}" for channels in CHANNELS)
        return f"measured here, times as fast as SDPA from {TOKENS} tokens on: {told} channels of a head"


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": lambda *qkv: F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv)),
    "c": compiled.attend,
}
NAMES = [f"{way} {channels}" for channels in CHANNELS for way in WAYS]


@functools.cache
def measured(threads: int) -> Measured:
    """What is kept of this machine with so many threads, else what is measured now; nothing is with DITI_TUNE=0."""
    return Measured(native.kept_times("attention", NAMES, (threads, compiled.SOURCE.read_bytes()), measure))


def measure(clock: native.Clock = time.process_time) -> dict[str, float]:
    """Milliseconds of both ways in turn, for one sample; the least of the readings counts."""
    best: dict[str, float] = {}
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for channels in CHANNELS:
            qkv = torch.linspace(-1, 1, TOKENS * 3 * HEADS * channels, dtype=torch.float32)
            q, k, v = qkv.view(1, TOKENS, 3, HEADS, channels).unbind(2)
            for reading in range(1 + READINGS):
                for name, way in WAYS.items():
                    started = clock()
                    way(q, k, v)
                    seconds, key = clock() - started, f"{name} {channels}"
                    if reading:  # the first warms up
                        best[key] = min(best.get(key, float("inf")), seconds)
    return {name: 1e3 * seconds for name, seconds in best.items()}
