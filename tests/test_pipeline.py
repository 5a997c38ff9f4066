import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import LATENT_DIM, SIZE

import diticli
from diticli.chunks import ChunkLayout
from diticli.data.images import to_square
from diticli.errors import ConfigError, ModelError
from diticli.models.pipeline import normalise, unet_to_diffusers

T = torch.tensor([10, 300, 600, 990])


@pytest.fixture(scope="module")
def pipeline(make_pipeline):
    return make_pipeline()


def photos(count=3, size=(40, 30)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def tensors(count=4):
    return torch.empty(count, 3, SIZE, SIZE).uniform_(-1, 1)


def test_parts_must_fit_each_other(make_pipeline, pipeline):
    with pytest.raises(ModelError, match="needs its chunk layout"):
        make_pipeline(chunk_layout=None)
    with pytest.raises(ModelError, match=r"disagree on the latent dim: \[8, 16\]"):
        make_pipeline(chunk_layout=ChunkLayout.uniform(chunks=2, latent_dim=8).to_dict())
    with pytest.raises(ModelError, match="covers 100 timesteps, the scheduler 1000"):
        make_pipeline(chunk_layout=ChunkLayout.uniform(chunks=2, latent_dim=16, timesteps=100).to_dict())
    with pytest.raises(ModelError, match="shift_form is 'score' or 'posterior', got 'both'"):
        make_pipeline(shift_form="both")


def test_hash_follows_every_part(make_pipeline, pipeline):
    assert make_pipeline().model_hash == pipeline.model_hash
    other_layout = ChunkLayout.uniform(chunks=2, latent_dim=LATENT_DIM)
    assert make_pipeline(chunk_layout=other_layout.to_dict()).model_hash != pipeline.model_hash
    hashes = {pipeline.model_hash}
    for part in ("unet", "encoder", "shift_decoder"):
        changed = make_pipeline()
        with torch.no_grad():
            next(getattr(changed, part).parameters()).add_(1e-3)
        hashes.add(changed.model_hash)
    assert len(hashes) == 4


def test_pil_images_preprocessed_tensors_and_uint8_encode_alike(pipeline):
    images = photos()
    expected = pipeline.encode(images)
    x = pipeline.preprocess(images)
    assert (x.shape, x.dtype) == ((3, 3, SIZE, SIZE), torch.float32)
    assert -1 <= x.min() < x.max() <= 1
    assert torch.equal(pipeline.encode(x), expected)
    square = torch.from_numpy(np.stack([to_square(image, SIZE) for image in images])).permute(0, 3, 1, 2)
    assert torch.equal(normalise(square), x)
    assert torch.equal(pipeline.encode_uint8(square), expected)
    assert torch.equal(pipeline.encode(x.double()), expected)


def test_encode_gives_float32_rows_on_the_cpu_without_a_graph(pipeline):
    features = pipeline.encode(tensors(5))
    assert (features.shape, features.dtype) == ((5, LATENT_DIM), torch.float32)
    assert not features.requires_grad
    assert features.device.type == "cpu"


def test_encode_takes_one_image_grey_images_and_none(pipeline):
    image = photos(1)[0]
    assert torch.equal(pipeline.encode(image), pipeline.encode([image]))
    assert pipeline.encode([image.convert("L"), image.convert("RGBA")]).shape == (2, LATENT_DIM)
    assert pipeline.encode([]).shape == (0, LATENT_DIM)
    assert pipeline.encode(tensors(0)).shape == (0, LATENT_DIM)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_do_not_change_features(pipeline, batch_size):
    x = tensors(5)
    torch.testing.assert_close(pipeline.encode(x, batch_size=batch_size), pipeline.encode(x))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, SIZE, SIZE), r"Expected a float tensor \[N, 3, 16, 16\], got torch.float32 \[3, 16, 16\]"),
        (torch.zeros(2, 3, 8, 8), r"got torch.float32 \[2, 3, 8, 8\]"),
        (torch.zeros(2, 1, SIZE, SIZE), r"got torch.float32 \[2, 1, 16, 16\]"),
        (torch.zeros(2, SIZE, SIZE, 3), r"got torch.float32 \[2, 16, 16, 3\]"),
        (torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((2, 3, SIZE, SIZE), 255.0), r"should lie in \[-1, 1\]; these reach 255"),
        (torch.full((2, 3, SIZE, SIZE), -2.0), "these reach 2"),
        (torch.full((2, 3, SIZE, SIZE), torch.nan), "these reach nan"),
    ],
)
def test_tensors_of_another_shape_or_range(pipeline, images, message):
    for method in (pipeline.encode, lambda x: pipeline.invert(x, torch.zeros(2, LATENT_DIM), steps=1)):
        with pytest.raises(ConfigError, match=message) as error:
            method(images)
        assert error.value.remedy


def test_predict_masks_what_a_timestep_may_not_see(pipeline):
    x, z = tensors(), torch.randn(4, LATENT_DIM)
    noise, shift = pipeline.predict(x, T, z)
    assert noise.shape == shift.shape == x.shape
    with torch.no_grad():
        torch.testing.assert_close(noise, unet_to_diffusers(pipeline.unet)(x, T).sample)
    by_hand = z * (torch.arange(LATENT_DIM) < torch.tensor([[4], [8], [12], [16]]))
    torch.testing.assert_close(pipeline.predict(x, T, by_hand, masked=False).shift, shift)
    whole = pipeline.predict(x, T, z, masked=False).shift
    assert torch.equal(whole[3], shift[3])  # the last chunk sees everything
    assert not torch.equal(whole[0], shift[0])
    assert not shift.requires_grad


def test_sampling_uses_the_shifted_noise_in_the_chosen_form(make_pipeline):
    for form in ("score", "posterior"):
        pipeline = make_pipeline(shift_form=form)
        x, z = tensors(), torch.randn(4, LATENT_DIM)
        estimate = pipeline.sampler(precision="fp32").noise(z)
        for t in (990, 400, 300, 10):  # 400 and 300 share a chunk: the projected features are kept
            t_B = torch.full((4,), t)
            noise, shift = pipeline.predict(x, t_B, z)
            expected = noise + pipeline.schedule.shift_scale(t_B, form) * shift
            torch.testing.assert_close(estimate(x, t), expected)


def test_invert_and_decode(pipeline):
    x = tensors(2)
    z = pipeline.encode(x)
    reports = []
    x_T = pipeline.invert(x, z, steps=10, callback=lambda *report: reports.append(report))
    images = pipeline.decode(x_T, z, steps=5, clip=True, callback=lambda *report: reports.append(report))
    assert x_T.shape == images.shape == x.shape
    assert reports == [(i, 10) for i in range(1, 11)] + [(i, 5) for i in range(1, 6)]
    assert not images.requires_grad
    assert torch.equal(images, pipeline.decode(x_T, z, steps=5, clip=True))
    assert torch.equal(
        pipeline.invert(photos(2), z, steps=2), pipeline.invert(pipeline.preprocess(photos(2)), z, steps=2)
    )
    with pytest.raises(ConfigError, match="Cannot take 0 DPM-Solver steps"):
        pipeline.decode(x_T, z, steps=0)


def test_nothing_leaves_a_trace(make_pipeline):
    pipeline = make_pipeline()
    pipeline.encoder.train()  # as left by whoever trains it
    pipeline.shift_decoder.requires_grad_(True)
    modules = [m for part in (pipeline.unet, pipeline.encoder, pipeline.shift_decoder) for m in part.modules()]
    parameters = [p for m in modules for p in m.parameters(recurse=False)]

    def state():
        return [m.training for m in modules], [p.requires_grad for p in parameters], torch.is_grad_enabled()

    before, random_state = state(), torch.get_rng_state()
    x = tensors(2)
    torch.set_rng_state(random_state)
    z = pipeline.encode(x)
    pipeline.encode_uint8(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
    x_T = pipeline.invert(x, z, steps=2)
    pipeline.decode(x_T, z, steps=2)
    pipeline.predict(x, T[:2], z)
    assert state() == before
    assert all(p.grad is None for p in parameters)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_half_precision_models_take_and_give_float32(make_pipeline):
    pipeline = make_pipeline().to(torch.bfloat16)
    x = tensors(2)
    z = pipeline.encode(x)
    assert z.dtype == torch.float32
    assert pipeline.encode_uint8(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)).dtype == torch.float32
    x_T = pipeline.invert(x, z, steps=2)
    images = pipeline.decode(x_T, z, steps=2)
    assert x_T.dtype == images.dtype == torch.float32
    assert pipeline.schedule.alphas_cumprod.dtype == torch.float32


def test_the_package_offers_its_names_lazily():
    assert set(diticli.__all__) >= {"ChunkLayout", "DiTiPipeline", "SemanticEncoder", "ShiftDecoder"}
    assert all(getattr(diticli, name) for name in diticli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        diticli.nonsense  # noqa: B018
