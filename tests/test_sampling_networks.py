"""What samplers run: inference copies, kept features, precision."""

import pytest
import torch
from tiny_models import LATENT_DIM, SIZE, perturb

from diticli.errors import ModelError
from diticli.models.compiled import StepGraph, should_capture
from diticli.models.frozen import FrozenPair, FrozenShift
from diticli.models.sampler import Sampler
from diticli.models.shift_decoder import ShiftDecoder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TIMES = (999, 760, 740, 400, 300, 260, 10, 0)  # chunks 3 3 2 1 1 1 0 0


@pytest.fixture(scope="module")
def pipeline(make_pipeline):
    return make_pipeline()


def inputs(count=2):
    return torch.randn(count, 3, SIZE, SIZE), torch.randn(count, LATENT_DIM)


def test_kept_features_change_nothing(pipeline):
    x, z = inputs()
    kept = pipeline.sampler(precision="fp32").noise(z)
    for t in TIMES:
        assert torch.equal(kept(x, t), pipeline.sampler(precision="fp32").noise(z)(x, t)), t


def test_features_are_projected_once_a_chunk(pipeline, monkeypatch):
    x, z = inputs()
    estimate, projected = pipeline.sampler(precision="fp32").noise(z), []
    shift = estimate._pair.shift
    project = shift.project
    monkeypatch.setattr(shift, "project", lambda z, t, windows: projected.append(int(t)) or project(z, t, windows))
    for t in TIMES:
        estimate(x, t)
    assert projected == [999, 740, 400, 10]


@pytest.mark.parametrize("shape", ["conv-default", "resnet-scale_shift", "without-attention"])
def test_copies_compute_what_the_networks_compute(make_pipeline, make_unet, shape):
    unet = make_unet(shape)
    decoder = ShiftDecoder.for_unet(unet, LATENT_DIM)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    pipeline = make_pipeline(unet=unet, shift_decoder=decoder)
    x, z = inputs()
    for t in (700, 20):
        t_B = torch.full((2,), t)
        noise, shift = pipeline.predict(x, t_B, z)
        expected = noise + pipeline.schedule.shift_scale(t_B, "score") * shift
        torch.testing.assert_close(pipeline.sampler(precision="fp32").noise(z)(x, t), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ["conv-default", "resnet-scale_shift"])
def test_the_shift_branchs_copy_is_for_inference_alone(make_unet, shape):
    decoder = ShiftDecoder.for_unet(make_unet(shape), LATENT_DIM)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    copy = FrozenShift(decoder)
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert any(isinstance(module, torch.nn.ConvTranspose2d) for module in copy.modules())
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())


def test_bf16_differs_a_little_and_gives_float32(pipeline):
    x, z = inputs()
    whole, half = (pipeline.sampler(precision=precision).noise(z)(x, 300) for precision in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.1 * whole.abs().max()
    assert torch.equal(pipeline.sampler(precision="fp32").noise(z)(x, 300), whole)  # back again


def test_solvers_have_their_own_precision(pipeline, monkeypatch):
    monkeypatch.setattr("diticli.models.sampler.resolve_precision", lambda precision, device: asked.append(precision))
    asked = []
    for options in ({}, {"solver": "ddim"}, {"precision": "fp32"}, {"solver": "ddim", "precision": "bf16"}):
        pipeline.sampler(**options)
    assert asked == ["auto", "fp32", "fp32", "bf16"]


def test_no_change_of_the_weights_goes_unseen(make_pipeline):
    """Written through `.data`, as diffusers' EMAModel.copy_to and fused optimizers do: no version counter moves."""
    pipeline = make_pipeline()
    x, z = inputs()
    before, digits = pipeline.decode(x, z, 3), pipeline.model_hash
    assert torch.equal(pipeline.decode(x, z, 3), before)
    for network in (pipeline.unet, pipeline.shift_decoder):
        for parameter in network.parameters():
            parameter.data.zero_()
    assert not torch.equal(pipeline.decode(x, z, 3), before)
    assert pipeline.model_hash != digits
    still = pipeline.sampler().noise(z)(x, 500)
    assert torch.equal(still, torch.zeros_like(still))  # networks of zeros estimate zero noise


def test_a_sampler_is_of_the_moment_it_was_made(make_pipeline):
    pipeline = make_pipeline()
    x, z = inputs()
    sampler = pipeline.sampler()
    before = sampler.decode(x, z, 3)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(2)
    assert torch.equal(sampler.decode(x, z, 3), before)


def test_an_edit_copies_the_networks_once(make_pipeline, monkeypatch):
    from PIL import Image

    from diticli.editing.pair import edit_pair
    from diticli.editing.settings import EditSettings

    made = []
    monkeypatch.setattr(Sampler, "__init__", _counted(Sampler.__init__, made))
    pipeline, pictures = make_pipeline(), [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    edit_pair(pipeline, *pictures, [(0, 1)], [1.0], settings=EditSettings(invert_steps=1, decode_steps=1, batch_size=1))
    assert len(made) == 1


def _counted(init, made):
    def counted(self, *given, **options):
        made.append(self)
        init(self, *given, **options)

    return counted


def test_copies_leave_the_networks_and_the_random_state_alone(make_pipeline):
    pipeline = make_pipeline()
    weights = [p for part in pipeline.networks.values() for p in part.parameters()]
    pipeline.shift_decoder.train().requires_grad_(True)
    before, state = [p.clone() for p in weights], torch.get_rng_state()
    FrozenPair(pipeline.unet, pipeline.shift_decoder, torch.bfloat16)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(weights, before, strict=True))
    assert pipeline.shift_decoder.training
    assert all(p.requires_grad for p in pipeline.shift_decoder.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_sampling_works_inside_and_outside_inference_mode(make_pipeline):
    pipeline = make_pipeline()
    x, z = inputs()
    with torch.inference_mode():
        inside = pipeline.decode(x, z, 3)
    assert torch.equal(pipeline.decode(x, z, 3), inside)


def test_an_encoder_alone_cannot_sample(make_pipeline):
    pipeline = make_pipeline(unet=None, shift_decoder=None)
    for walk in (pipeline.decode, pipeline.invert):
        with pytest.raises(ModelError, match="an encoder alone"):
            walk(inputs()[0].clamp(-1, 1), inputs()[1], 2)


def steps_agree(pipeline, counts):
    """Yields after all timesteps of each number of images."""
    plain, compiled = (
        FrozenPair(pipeline.unet, pipeline.shift_decoder, torch.float32, compile=c) for c in (False, True)
    )
    for count in counts:
        x, z = inputs(count)
        for t in torch.tensor(TIMES)[:, None]:
            step = (x, t, plain.shift.project(z, t, pipeline.windows), torch.tensor(0.3))
            torch.testing.assert_close(compiled.estimate(*step), plain.estimate(*step), rtol=1e-4, atol=1e-5)
        yield


def test_a_compiled_step_is_for_two_shapes(make_pipeline, make_unet, graphs):
    """Compiled for the first two; a third runs uncompiled, and another timestep compiles nothing."""
    unet = make_unet("D", channels=(8,))
    pipeline = make_pipeline(unet=unet, shift_decoder=perturb(ShiftDecoder.for_unet(unet, LATENT_DIM)))
    made = [len(graphs) for _ in steps_agree(pipeline, (2, 1, 3))]
    assert made == [1, 2, 2]


def test_a_compiled_step_gives_the_same_estimate(make_pipeline, make_unet):
    """By the real compiler, which takes a second for each of its kernels: of one level, without attention."""
    unet = make_unet("D", channels=(4,), add_attention=False)
    decoder = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM))
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    (_,) = steps_agree(make_pipeline(unet=unet, shift_decoder=decoder), (2,))
    assert graphs["unique_graphs"] == 1


def test_where_compiling_fails_sampling_says_so_and_goes_on(make_pipeline, monkeypatch):
    pipeline = make_pipeline()
    x, z = inputs()
    plain = pipeline.decode(x, z, 2)
    failing = RuntimeError("no compiler")

    def broken(*_, **__):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, failing, None)

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    with pytest.warns(RuntimeWarning, match="sampler's step, which runs uncompiled: RuntimeError: no compiler"):
        compiled = pipeline.decode(x, z, 2, compile=True)
    assert torch.equal(compiled, plain)


def test_graphs_are_for_small_batches_on_a_gpu():
    assert not should_capture(torch.zeros(1, 3, 4, 4))


@pytest.mark.gpu
@needs_gpu
def test_a_graph_replays_the_step(make_pipeline, monkeypatch):
    pipeline = make_pipeline().to("cuda")
    x, z = (value.cuda() for value in inputs())
    noise = pipeline.sampler(precision="fp32").noise(z)
    graphed = [noise(x, t) for t in TIMES]
    assert noise._pair._graphs
    monkeypatch.setenv("DITI_CUDA_GRAPH", "0")
    eager = [pipeline.sampler(precision="fp32").noise(z)(x, t) for t in TIMES]
    for replayed, wanted in zip(graphed, eager, strict=True):
        torch.testing.assert_close(replayed, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_a_graphs_results_are_their_own_memory():
    doubled = StepGraph(lambda x: 2 * x, torch.zeros(3, device="cuda"))
    first = doubled(torch.ones(3, device="cuda"))
    doubled(torch.zeros(3, device="cuda"))
    assert first.tolist() == [2, 2, 2]
