"""The layout of maps: who chooses it, that networks keep it forwards and backwards, and that it changes no result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diti_kernels.cpu_layout import Measured
from tiny_models import LATENT_DIM, perturb
from torch import Tensor, nn

from diticli.chunks import ChunkLayout
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.errors import ConfigError
from diticli.models import layout
from diticli.models.encoder import SemanticEncoder
from diticli.models.frozen import FrozenBase, FrozenShift
from diticli.models.layout import in_layout, layout_choice, layout_for
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet_forward import estimate_noise
from diticli.schedule import NoiseSchedule
from diticli.training.objectives import FeatureObjective

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
T = torch.tensor([0, 417, 999])


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(layout.VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("device", "dtype", "name"),
    [
        (CPU, torch.float64, "contiguous"),
        (CPU, torch.bfloat16, "channels_last"),
        (CUDA, torch.float32, "channels_last"),
        (CUDA, torch.bfloat16, "channels_last"),
    ],
)
def test_auto_goes_by_device_and_dtype(device: torch.device, dtype: torch.dtype, name: str) -> None:
    assert layout_choice(device, dtype).name == name
    assert layout_for(device, dtype) == FORMATS[name]


@pytest.mark.parametrize(
    ("served", "times", "name"),
    [
        (True, (2.0, 1.0), "channels_last"),
        (True, (1.0, 1.02), "channels_last"),
        (True, (1.0, 1.5), "contiguous"),
        (True, (None, None), "channels_last"),
        (False, (2.0, 1.0), "contiguous"),
    ],
)
def test_float32_on_a_cpu_goes_by_norms_in_c_and_a_measurement(
    served: bool, times: tuple[float, float], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "serves", lambda *_: served)
    monkeypatch.setattr(layout, "measured", lambda _: Measured(*times))
    choice = layout_choice(CPU, torch.float32)
    assert choice.name == name
    if served and times[0] is not None:
        assert choice.reason == f"measured here: {times[1]:.3g} ms channels_last, {times[0]:.3g} ms contiguous"
    assert in_layout(torch.ones(2, 3, 4, 5)).is_contiguous(memory_format=FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
def test_the_variable_forces_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(layout.VARIABLE, f" {name.upper()} ")
    for device in (CPU, CUDA):
        for dtype in (torch.float32, torch.bfloat16):
            assert layout_choice(device, dtype) == (name, f"DITI_LAYOUT={name}")
            assert layout_for(device, dtype) == FORMATS[name]
    assert in_layout(torch.ones(2, 3, 4, 5)).is_contiguous(memory_format=FORMATS[name])


def test_autocast_counts_as_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "serves", lambda *_: False)
    x = torch.ones(2, 3, 4, 5)
    assert in_layout(x).is_contiguous()
    with torch.autocast("cpu", torch.bfloat16):
        assert in_layout(x).is_contiguous(memory_format=torch.channels_last)


def test_an_unknown_value_is_refused(make_unet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet()
    monkeypatch.setenv(layout.VARIABLE, "NHWC")
    with pytest.raises(ConfigError, match="DITI_LAYOUT='nhwc' is unknown") as refused:
        layout_choice(CPU, torch.float32)
    assert refused.value.remedy == "Use one of auto, contiguous, channels_last, or unset it."
    with pytest.raises(ConfigError):
        FrozenBase(unet)


def test_says_once_what_is_used_and_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(layout.VARIABLE, "contiguous")
    layout._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=layout.__name__):
        for _ in range(3):
            layout_for(CPU, torch.bfloat16)
    assert [record.getMessage() for record in caplog.records] == [
        "Layout of maps on cpu in bfloat16: contiguous (DITI_LAYOUT=contiguous)"
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_a_graph_takes_the_choice_in_as_a_constant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, no break, and within it the layout that held when it was traced."""
    monkeypatch.setenv(layout.VARIABLE, name)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    function = torch.compile(lambda x: in_layout(x) + 1, backend=backend, fullgraph=True, dynamic=False)
    x = torch.randn(2, 3, 4, 5)
    assert function(x).is_contiguous(memory_format=FORMATS[name])
    monkeypatch.setenv(layout.VARIABLE, "auto")
    assert function(x).is_contiguous(memory_format=FORMATS[name])
    torch.compiler.reset()
    assert len(graphs) == 1


def watched(*networks: nn.Module) -> list[tuple[str, Tensor]]:
    """All maps that enter or leave convolutions from now on, and the gradients that come back to them."""
    seen: list[tuple[str, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for tensor in (inputs[0], output):
            seen.append((type(module).__name__, tensor))
            if tensor.requires_grad:
                tensor.register_hook(lambda g: seen.append((f"gradient at {type(module).__name__}", g)))

    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(note)
    return seen


def astray(seen: list[tuple[str, Tensor]], name: str) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Those that lie in another layout; gradients of images come as the loss makes them, in NCHW, and are small."""
    maps = [(what, t) for what, t in seen if t.shape[1] > 3 or "gradient" not in what]
    wrong = [(what, t) for what, t in maps if not t.is_contiguous(memory_format=FORMATS[name])]
    return [(what, tuple(t.shape), t.stride()) for what, t in wrong]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_inference_copies_keep_maps_and_weights_in_it(
    make_unet: Callable[..., Any],
    layout: ChunkLayout,
    name: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DITI_LAYOUT", name)
    unet = make_unet("resnet-scale_shift")
    base, shift = FrozenBase(unet, dtype), FrozenShift(perturb(ShiftDecoder.for_unet(unet, LATENT_DIM)), dtype)
    weights = [(n, p) for part in (base, shift) for n, p in part.named_parameters() if p.ndim == 4]
    assert not astray(weights, name)
    seen = watched(base, shift)
    noise, down = base(torch.randn(3, 3, 16, 16), T)
    found = shift(down, shift.project(torch.randn(3, LATENT_DIM), T, ChunkWindows(layout)))
    assert len(seen) > 40
    assert not astray([*seen, ("noise", noise), ("shift", found), *((f"skip {s.shape}", s) for s in down.skips)], name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", FORMATS)
def test_batch_encoding_keeps_maps_and_weights_in_it(
    make_pipeline: Callable[..., Any], name: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITI_LAYOUT", name)
    encoder = BatchEncoder(make_pipeline().encoder, precision)
    seen = watched(encoder._encoder)
    encoder(torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8))
    assert seen
    assert not astray([*seen, *((n, p) for n, p in encoder._encoder.named_parameters() if p.ndim == 4)], name)


@pytest.fixture
def objective(make_unet: Callable[..., Any], layout: ChunkLayout) -> Callable[..., FeatureObjective]:
    """(dtype of the base's copy) -> the loss of stage 2 with seeded weights; bases of both kinds of resampling."""

    def make(shape: str = "resnet-scale_shift", dtype: torch.dtype = torch.float32) -> FeatureObjective:
        unet = make_unet(shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            encoder = perturb(SemanticEncoder(16, 3, (8, 8), LATENT_DIM, 8, 2, 4), 0.05)
            decoder = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM))
        schedule = NoiseSchedule(1 - torch.linspace(1e-4, 0.02, 1000))
        return FeatureObjective(FrozenBase(unet, dtype), encoder, decoder, schedule, layout, "cumulative").train()

    return make


def step(objective: FeatureObjective, autocast: bool, device: torch.device = CPU) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and gradients on the same images, timesteps and noise each time."""
    random = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(3, 3, 16, 16, generator=random).to(device) for _ in range(2))
    objective.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        losses = objective(x0_BCHW=x0, t_B=T.to(device), noise_BCHW=noise)
    losses.mean().backward()
    return losses.detach(), {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shape", ["conv-default", "resnet-scale_shift", "ddpm-cifar10-32"])
def test_losses_and_gradients_do_not_depend_on_it(
    objective: Callable[..., FeatureObjective], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name in ("auto", *FORMATS):
        monkeypatch.setenv("DITI_LAYOUT", name)
        found[name] = step(objective(shape), False)
    for name in FORMATS:
        torch.testing.assert_close(found[name][0], found["auto"][0], rtol=1e-5, atol=1e-6)
        assert found[name][1].keys() == found["auto"][1].keys()
        for parameter, gradient in found["auto"][1].items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(
                found[name][1][parameter], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=parameter
            )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_training_step_keeps_it_forwards_and_backwards(
    objective: Callable[..., FeatureObjective], name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No convolution of base, encoder or shift branch meets two layouts at once, in either direction."""
    monkeypatch.setenv("DITI_LAYOUT", name)
    trained = objective(dtype=torch.bfloat16 if autocast else torch.float32)
    seen = watched(trained)
    step(trained, autocast)
    assert sum(what.startswith("gradient") for what, _ in seen) > 20
    assert not astray(seen, name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_step_on_a_gpu_keeps_channels_last(
    objective: Callable[..., FeatureObjective], autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With our norms: PyTorch's give and take NCHW on a GPU, and the convolutions beside them copy."""
    monkeypatch.setenv("DITI_KERNELS", "triton")
    trained = objective(dtype=torch.bfloat16 if autocast else torch.float32).to(CUDA)
    seen = watched(trained)
    step(trained, autocast, CUDA)
    assert sum(what.startswith("gradient") for what, _ in seen) > 20
    assert not astray(seen, "channels_last")


def test_compiled_graphs_keep_channels_last(make_unet: Callable[..., Any]) -> None:
    """Convolutions of the forward and the backward graph alike, as AOTAutograd hands them to the compiler."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    unet = make_unet("D", channels=(8,), layers_per_block=1, add_attention=False).requires_grad_(True)
    seen: list[tuple[str, Tensor]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            kind = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
            if kind == "convolution":
                seen.append((kind, node.args[0].meta["val"]))
            elif kind == "convolution_backward":
                seen.extend((f"gradient {kind}", a.meta["val"]) for a in node.args[:2])
        return make_boxed_func(graph.forward)

    def gradients(function: Callable[..., Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(unet, x, T).float().square().mean()
        return list(torch.autograd.grad(loss, list(unet.parameters())))

    torch.compiler.reset()
    x = torch.randn(3, 3, 16, 16)
    exact = gradients(estimate_noise)
    found = gradients(torch.compile(estimate_noise, backend=aot_autograd(fw_compiler=backend), fullgraph=True))
    torch.compiler.reset()
    kinds = [kind for kind, _ in seen]
    assert kinds.count("convolution") > 8
    assert kinds.count("gradient convolution_backward") > 16
    assert not astray(seen, "channels_last")
    distance = sum((a - b).square().sum() for a, b in zip(found, exact, strict=True))
    assert distance < 0.02**2 * sum(b.square().sum() for b in exact)
