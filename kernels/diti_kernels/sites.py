"""Sites: what an operation is called with, and which way was measured to be the fastest there.

`DITI_KERNELS=auto` takes the reference at every site but those for which whoever measured says otherwise (`learn`).
Nothing is measured here. Operations ask `asked`, which reads no shape, and only then `choice`.

    with recording("eager") as sites:   # which sites does this network have?
        network(x)
    learn({site: "triton" for site in sites if faster(site)})
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Self

import torch

from diti_kernels.dispatch import constant_in_graphs

Mode = Literal["eager", "compiled", "captured"]
MEASURED_DEVICES = ("cuda",)
"""Types of devices on which `auto` depends on measurements."""


class Site(NamedTuple):
    """An operation with all that its speed depends on, but the device.

    Attributes:
        operation: e.g. "adaptive_group_norm".
        mode: how it runs: "eager", "compiled" (torch.compile) or "captured" (a CUDA graph).
        dtype: e.g. "bfloat16".
        shape: the batch, rounded up to a power of two, then what the operation itself says.
        wants: which of its inputs want a gradient.
        options: what else the operation says.
    """

    operation: str
    mode: str
    dtype: str
    shape: tuple[int, ...]
    wants: tuple[bool, ...]
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people: one line that no other site has."""
        gradients = f"gradients {''.join(str(int(want)) for want in self.wants)}" if any(self.wants) else "forward"
        size = "x".join(map(str, self.shape))
        return ", ".join([f"{self.operation} {size}", self.dtype, self.mode, gradients, *self.options])

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """From `_asdict()`, perhaps by way of JSON.

        Raises:
            ValueError: when it is something else.
        """
        if set(fields) != set(cls._fields):
            raise ValueError(f"a site has the fields {', '.join(cls._fields)}")
        lists: dict[str, type] = {"shape": int, "wants": bool, "options": str}
        for name, value in fields.items():
            items = value if name in lists else [value]
            if not isinstance(items, list | tuple) or any(type(item) is not lists.get(name, str) for item in items):
                raise ValueError(f"a site's {name} is {str(value)[:80]!r}")
        plain: dict[str, Any] = {k: tuple(value) if k in lists else value for k, value in fields.items()}
        return cls(**plain)


class _Recorder(NamedTuple):
    mode: Mode
    sites: Counter[Site]


_chosen: dict[Site, str] = {}
_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)
_forced: ContextVar[str | None] = ContextVar("forced", default=None)
_captured: ContextVar[bool] = ContextVar("captured", default=False)


def learn(choices: Mapping[Site, str]) -> None:
    """Take these ways at these sites from now on, in the whole process; graphs keep what they were made with."""
    _chosen.update(choices)


def forget() -> None:
    """Take the reference everywhere again."""
    _chosen.clear()


@contextmanager
def recording(mode: Mode) -> Iterator[Counter[Site]]:
    """Count the sites that operations are called at within the block, by the reference, as if they ran in `mode`."""
    recorder = _Recorder(mode, Counter())
    with _set(_recorder, recorder):
        yield recorder.sites


def is_recording() -> bool:
    """Whether the sites of what runs now are recorded."""
    return _recorder.get() is not None


@contextmanager
def forcing(way: str) -> Iterator[None]:
    """Take one way at every site within the block."""
    with _set(_forced, way):
        yield


@contextmanager
def capturing() -> Iterator[None]:
    """What runs within the block is captured as a CUDA graph, or warms up for it."""
    with _set(_captured, True):
        yield


@contextmanager
def _set(variable: ContextVar[Any], value: object) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def is_measured(device_type: str) -> bool:
    """Whether `auto` depends on measurements on devices of this type."""
    return device_type in MEASURED_DEVICES


@constant_in_graphs
def asked(device_type: str, variable: str) -> bool:
    """Whether the way depends on the site: the environment variable says auto, and the device is measured."""
    if os.environ.get(variable, "auto").strip().lower() != "auto":
        return False
    return depends_on_site(device_type)


def depends_on_site(device_type: str) -> bool:
    """Whether `auto` does: the device is measured, or sites are recorded now, or one way is taken at all of them."""
    return is_measured(device_type) or _recorder.get() is not None or _forced.get() is not None


def wants_gradient(*inputs: torch.Tensor | None) -> tuple[bool, ...]:
    """Which inputs autograd will want a gradient of."""
    recorded = torch.is_grad_enabled()
    return tuple(recorded and x is not None and x.requires_grad for x in inputs)


def choice(
    operation: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    wants: tuple[bool, ...],
    options: tuple[str, ...] = (),
) -> str | None:
    """The way to take at a site, None where nothing is known. For the arguments see `Site`; the batch is any number."""
    return _choice(operation, torch.compiler.is_compiling(), dtype, shape, wants, options)


@constant_in_graphs
def _choice(
    operation: str,
    compiled: bool,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    wants: tuple[bool, ...],
    options: tuple[str, ...],
) -> str | None:
    recorder = _recorder.get()
    mode: str = "compiled" if compiled else "captured" if _captured.get() else "eager"
    bucket = 1 << max(0, shape[0] - 1).bit_length()
    site = Site(
        operation, recorder.mode if recorder else mode, str(dtype)[6:], (bucket, *shape[1:]), wants, options
    )  # fmt: skip
    if recorder is not None:
        recorder.sites[site] += 1
    return _forced.get() or _chosen.get(site)
