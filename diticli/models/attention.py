"""Attention of the networks: one call, `attend`, and the choice of the operator behind it.

PyTorch's `scaled_dot_product_attention` (SDPA), or the weights written out or our C code where that was measured to be
faster, or xformers where this machine's own measurement (`diticli.tuning`) found it faster: for these shapes its
operators are PyTorch's flash and efficient kernels behind Python operators. `DITI_ATTENTION=auto|xformers|sdpa|math`
forces one; the C code ("native") has no word of its own, since it serves some calls only.

Legend of shape suffixes: B batch, M query tokens, N key tokens, H heads, K channels of a head.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from operator import index
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diti_kernels.attention import compiled, op
from diti_kernels.dispatch import constant_in_graphs
from diti_kernels.sites import asked, choice, wants_gradient
from torch import Tensor

from diticli.errors import DeviceError
from diticli.variables import word_of

logger = logging.getLogger(__name__)
VARIABLE = "DITI_ATTENTION"
CHOICES = ("auto", "xformers", "sdpa", "math")
# Beyond these SDPA's bf16 backward on a CPU is no slower than the written-out weights, or they cost too much memory.
MATH_TOKENS = 1024
MATH_WEIGHT_BYTES = 32 * 2**20

Operator = Literal["xformers", "sdpa", "math", "native"]
_WHY_FASTER: dict[Operator, str] = {
    "math": "faster than SDPA's bf16 backward on a CPU",
    "native": "C code, measured to be faster here",
}


class AttentionChoice(NamedTuple):
    """The chosen attention operator and why.

    Attributes:
        name: "xformers", "sdpa", "math" or "native" (C code).
        reason: half a sentence for people, e.g. "DITI_ATTENTION=sdpa".
    """

    name: Operator
    reason: str


def attend(q_BMHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor) -> Tensor:
    """softmax(q kᵀ / √K) v for each head (Vaswani et al., arXiv 1706.03762, eq. 1), by the operator that suits.

    Under autocast the arguments are converted to its dtype first. Under `torch.compile` the operator is
    chosen when the graph is traced and stays with that graph.

    Args:
        q_BMHK: queries, any strides.
        k_BNHK: keys.
        v_BNHK: values, of the keys' shape.

    Returns:
        [B, M, H, K] in the dtype of the arguments; not always contiguous.

    Raises:
        ValueError: for shapes, dtypes or devices that do not belong together.
        ConfigError: when DITI_ATTENTION is none of auto, xformers, sdpa, math.
        DeviceError: when xformers is asked for and cannot be had.
    """
    _check_layout(q_BMHK, k_BNHK, v_BNHK)
    q, k, v = _autocast(q_BMHK, k_BNHK, v_BNHK)
    # A graph with dynamic shapes is specialised to these three, not to the batch.
    tokens, heads, head_dim = map(index, q.shape[1:])
    gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    faster: Operator | None = "native" if _is_auto() and op.serves(q, k, v) else None
    if gradient and _math_is_faster(q.device.type, q.dtype, len(q), tokens, k.shape[1], heads):
        faster = "math"
    name = _choose_and_log(q.device, q.dtype, tokens, heads, head_dim, faster)
    if name == "sdpa" and asked(q.device.type, VARIABLE):
        shape = (len(q), tokens, k.shape[1], heads, head_dim)
        if choice("attention", q.dtype, shape, wants_gradient(q, k, v)) == "xformers":
            name = "xformers"
    return _OPERATORS[name](q, k, v)


def attention_choice(
    device: torch.device,
    dtype: torch.dtype,
    *,
    tokens: int,
    heads: int,
    head_dim: int,
    batch: int = 1,
    gradient: bool = False,
) -> AttentionChoice:
    """What `attend` does with self-attention of this shape, and why, without running or logging it.

    Args:
        device: where it runs.
        dtype: in which it computes.
        tokens: M = N.
        heads: H.
        head_dim: K.
        batch: B.
        gradient: whether autograd records it.

    Raises:
        ConfigError: when DITI_ATTENTION is none of auto, xformers, sdpa, math.
        DeviceError: when xformers is asked for and cannot be had.
    """
    may_be_native = device.type == "cpu" and dtype == torch.float32 and not gradient and _is_auto()
    faster: Operator | None = "native" if may_be_native and op.pays(tokens, head_dim) else None
    if gradient and _math_is_faster(device.type, dtype, batch, tokens, tokens, heads):
        faster = "math"
    return _choose(device, dtype, tokens, heads, head_dim, faster)


def check_attention(device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Fail before images are read or a model is loaded where DITI_ATTENTION cannot be obeyed.

    Raises:
        ConfigError: when it is none of auto, xformers, sdpa, math.
        DeviceError: when xformers is asked for and cannot be had, not even for 64 tokens of one head of 64 channels.
    """
    _choose(device, dtype, 64, 1, 64, None)


def _math_is_faster(device_type: str, dtype: torch.dtype, batch: int, queries: int, keys: int, heads: int) -> bool:
    """Whether written-out weights train faster than SDPA: in bf16 on a CPU, while they are small.

    SDPA's CPU backward in bf16 loses to plain matrix products. Measured on a Xeon with AMX, PyTorch 2.13, 1 and 2
    threads, forward and backward, SDPA's time over that of the weights: 8 to 11 at 16 and 64 tokens (batch 128,
    4 heads of 32), 1.4 to 2.8 at 256 to 784 tokens, 0.7 to 1.6 at 1,024, 0.6 at 2,048, and about 1 wherever the
    weights outgrow 32 MiB. In fp32, or without a gradient, SDPA is seldom slower and up to 5 times as fast.
    """
    if device_type != "cpu" or dtype != torch.bfloat16 or keys > MATH_TOKENS:
        return False
    # `if`, not `and`: Dynamo guards on the symbolic batch size instead of specialising to one.
    if batch * heads * queries * keys * dtype.itemsize > MATH_WEIGHT_BYTES:  # noqa: SIM103
        return False
    return True


def _choose(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int, faster: Operator | None
) -> AttentionChoice:
    wanted = _wanted()
    if wanted in ("sdpa", "math"):
        return AttentionChoice(wanted, f"{VARIABLE}={wanted}")
    if faster is not None:
        return AttentionChoice(faster, _WHY_FASTER[faster])
    if wanted == "auto":
        return AttentionChoice("sdpa", f"{VARIABLE}=auto")
    refusal = _why_not_xformers(device, dtype, tokens, heads, head_dim)
    if refusal is not None:
        raise DeviceError(f"xformers attention cannot be used: {refusal}.", remedy=f"Unset {VARIABLE}.")
    return AttentionChoice("xformers", f"{VARIABLE}=xformers")


def _wanted() -> Any:
    return word_of(VARIABLE, CHOICES)


@constant_in_graphs
def _is_auto() -> bool:
    return bool(_wanted() == "auto")


@constant_in_graphs
def _choose_and_log(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int, faster: Operator | None
) -> Operator:
    choice = _choose(device, dtype, tokens, heads, head_dim, faster)
    _log_once(device, dtype, tokens, heads, head_dim, choice)
    return choice.name


@cache
def _log_once(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int, choice: AttentionChoice
) -> None:
    shape = f"{heads} heads of {head_dim}, {tokens} tokens, {str(dtype).removeprefix('torch.')}"
    logger.info("Attention on %s (%s): %s (%s)", device, shape, *choice)


@contextlib.contextmanager
def quiet_xformers() -> Iterator[None]:
    """Without the warnings that xformers logs when it is imported where it finds no CUDA; diffusers imports it, too."""
    log = logging.getLogger("xformers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@lru_cache(maxsize=256)
def _why_not_xformers(device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int) -> str | None:
    """None where xformers computes attention of this shape and its gradient, which is tried once.

    A shortage of memory is no answer, since it passes: it is raised, and the shape is tried again.
    """
    if device.type != "cuda":
        return "xformers has no operator for this device"
    try:
        with quiet_xformers():
            from xformers.ops import memory_efficient_attention
    except Exception as error:  # a build for another PyTorch raises RuntimeError, AttributeError, ...
        return f"xformers cannot be imported: {error}"
    try:
        with torch.inference_mode(False), torch.enable_grad():
            probe = torch.ones(1, tokens, heads, head_dim, device=device, dtype=dtype, requires_grad=True)
            memory_efficient_attention(probe, probe, probe).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"xformers refuses it: {str(error).splitlines()[0]}"
    return None


def _attend_xformers(q_BMHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    # Its operators need unit strides within a head.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BMHK, k_BNHK, v_BNHK))
    return memory_efficient_attention(q, k, v)


def _attend_sdpa(q_BMHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor) -> Tensor:
    q, k, v = q_BMHK.transpose(1, 2), k_BNHK.transpose(1, 2), v_BNHK.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _attend_math(q_BMHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor) -> Tensor:
    B, M, H, K = q_BMHK.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BMHK, k_BNHK, v_BNHK))
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=1 / math.sqrt(K))
    return torch.bmm(scores.softmax(-1), v).view(B, H, M, K).transpose(1, 2)


_OPERATORS: dict[Operator, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "xformers": _attend_xformers,
    "sdpa": _attend_sdpa,
    "math": _attend_math,
    "native": compiled.attend,
}


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one dtype and device as SDPA would take them; xformers would not convert them."""
    device_type = tensors[0].device.type
    if torch.is_autocast_enabled(device_type) and tensors[0].dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        return tuple(x.to(dtype) for x in tensors)
    return tensors


def _check_layout(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless shapes, dtypes and devices belong together."""
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"q [B, M, H, K] and k, v [B, N, H, K] expected, got {shapes}.")
    if len({x.dtype for x in (q, k, v)}) > 1 or len({x.device for x in (q, k, v)}) > 1:
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(f"q, k and v must be of one dtype on one device, got {kinds}.")
