"""All blocks of a path share one product for the time embedding and one for the features, forwards and backwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import LATENT_DIM, perturb
from torch.utils._python_dispatch import TorchDispatchMode

from diticli.chunks import ChunkLayout
from diticli.models.frozen import FrozenBase, FrozenShift
from diticli.models.modulation import gather_weights
from diticli.models.noise_prediction import predict
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet_forward import down_resnets, estimate_noise, up_resnets

T = torch.tensor([0, 417, 999])
PRODUCTS = {"addmm", "mm", "bmm", "baddbmm", "linear", "matmul", "masked_linear"}


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def count(function: Callable[[], Any]) -> int:
    """How many matrix products a call makes."""
    with Products() as products:
        function()
    return products.found.total()


@pytest.fixture(params=[1, 3])
def parts(request: pytest.FixtureRequest, make_unet: Callable[..., Any]) -> tuple[Any, ShiftDecoder]:
    """A base without attention, whose products would count too, and its shift branch; few blocks, and many."""
    unet = make_unet("RD", layers_per_block=request.param, add_attention=False, shift="scale_shift")
    return unet, perturb(ShiftDecoder.for_unet(unet, LATENT_DIM))


def test_the_base_makes_two_for_the_embedding_and_one_a_path(parts: tuple[Any, ShiftDecoder]) -> None:
    unet, x = parts[0], torch.randn(3, 3, 16, 16)
    blocks = len(down_resnets(unet)) + len(up_resnets(unet))
    assert blocks >= 8
    base = FrozenBase(unet, torch.float32)
    assert count(lambda: base(x, T)) == 2 + 2
    assert count(lambda: estimate_noise(unet, x, T)) == 2 + 2


def test_the_branch_makes_one_for_time_and_two_for_features(
    parts: tuple[Any, ShiftDecoder], layout: ChunkLayout
) -> None:
    unet, decoder = parts
    windows, z, x = ChunkWindows(layout), torch.randn(3, LATENT_DIM), torch.randn(3, 3, 16, 16)
    base = FrozenBase(unet, torch.float32)
    down = base(x, T)[1]
    assert count(lambda: decoder.project(z, T, windows)) == 2, "z to its embedding, that to all modulations"
    z_mod = decoder.project(z, T, windows)
    assert count(lambda: decoder(down, z_mod)) == 1
    assert count(lambda: predict(base, decoder, x, T, z_mod)) == 2 + 2 + 1
    frozen = FrozenShift(decoder, torch.float32)
    assert count(lambda: frozen(down, z_mod)) == 1
    assert count(lambda: frozen.project(z, T, windows)) == 2


def test_their_gradients_are_as_few(
    parts: tuple[Any, ShiftDecoder], layout: ChunkLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two for each: of the weights and of what they are multiplied with (none of what is not trained)."""
    monkeypatch.setenv("DITI_LAYOUT", "contiguous")  # in channels_last 1x1 convolutions are products too
    unet, decoder = parts
    decoder.requires_grad_(True)
    z, x = torch.randn(3, LATENT_DIM, requires_grad=True), torch.randn(3, 3, 16, 16)
    z_mod = decoder.project(z, T, ChunkWindows(layout))
    shift = predict(FrozenBase(unet, torch.float32), decoder, x, T, z_mod)[0].shift
    assert count(lambda: shift.square().mean().backward()) == 2 * 2 + 1


def test_every_block_is_in_it(parts: tuple[Any, ShiftDecoder]) -> None:
    """And as many rows as all blocks have scales and shifts."""
    unet, decoder = parts
    for blocks in (down_resnets(unet), up_resnets(unet), up_resnets(decoder)):
        rows = sum(2 * block.out_channels for block in blocks)
        assert len(gather_weights(blocks).weight_RE) == rows
