"""The gap with features and the use of chunks: planted denoisers whose losses are known, and a real tiny pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diticli.chunks import ChunkLayout, Visible
from diticli.errors import ChunkError, DataError, ModelError
from diticli.evaluation import chunk_ablation
from diticli.evaluation.chunk_ablation import measure_ablation
from diticli.evaluation.denoising import measure_model_gap
from diticli.models.pixels import normalise
from diticli.models.reconstruction_gap import measure_gap
from diticli.progress import SilentReporter
from diticli.schedule import NoiseSchedule

SIDE, K, T = 16, 4, 1000


class Warnings(SilentReporter):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (8, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def banded(count: int, contrasts: list[float]) -> torch.Tensor:
    """Images of K horizontal bands, the brightness of band k uniform in +- contrast k."""
    strengths = torch.rand(count, K, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = (strengths * torch.tensor(contrasts)).repeat_interleave(SIDE // K, dim=1)
    return (127.5 * (1 + pixels)).round().byte()[:, None, :, None].expand(-1, 3, -1, SIDE).contiguous()


def plant(monkeypatch: pytest.MonkeyPatch, *, ignored: int = -1, visible: Visible = "prefix") -> Any:
    """The base misses each band; chunk k of z holds the brightness of band k, and the decoder gives it back.

    Nothing is known before a chunk's own timesteps. One chunk may be ignored by base and decoder alike.
    """
    layout = replace(ChunkLayout.uniform(chunks=K, latent_dim=K), visible=visible)
    schedule = NoiseSchedule(1 - torch.linspace(1e-4, 0.02, T))

    def brightness(x0: torch.Tensor) -> torch.Tensor:
        return x0.mean(dim=(1, 3)).reshape(-1, K, SIDE // K).mean(dim=2)

    def picture(values_BK: torch.Tensor) -> torch.Tensor:
        values_BK = values_BK.clone()
        if ignored >= 0:
            values_BK[:, ignored] = 0
        return values_BK.repeat_interleave(SIDE // K, dim=1)[:, None, :, None].expand(-1, 3, -1, SIDE)

    class Planted:
        def __init__(self, denoiser: Any, x0: torch.Tensor, noise: torch.Tensor, t: int) -> None:
            self.visible = torch.arange(K) < int(layout.visible_dims()[t, 1])
            self.base_BCHW = noise + picture(brightness(x0))

        def estimate(self, z: torch.Tensor) -> torch.Tensor:
            return self.base_BCHW - picture(z * self.visible)

    denoiser = SimpleNamespace(device=torch.device("cpu"), schedule=schedule)
    monkeypatch.setattr(chunk_ablation, "Denoiser", lambda pipeline: denoiser)
    monkeypatch.setattr(chunk_ablation, "NoisyImages", Planted)
    return SimpleNamespace(chunks=layout, model_hash="", encode_uint8=lambda images: brightness(normalise(images)))


def test_a_chunk_is_worth_what_it_says_where_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    contrasts = [0.4, 0.4, 0.8, 0.4]
    images = banded(64, contrasts)
    use = measure_ablation(plant(monkeypatch), images, batch_size=20)
    # A band's worth is the variance of its brightness; what the base misses is the sum of squares.
    x = normalise(images)[:, 0, :: SIDE // K, 0].double()
    variance, missed = x.var(dim=0, correction=0), x.square().mean(dim=0)
    for k, group in enumerate(use.groups):
        assert group.chunks == (k,)
        assert group.own.value == pytest.approx(float(variance[k] / missed.sum()), rel=1e-3)
        assert group.own.low < group.own.value < group.own.high
        assert not group.ignored
    first, last = use.groups[0].beyond, use.groups[-1].beyond
    assert first is not None
    assert first.value == pytest.approx(use.groups[0].own.value, rel=1e-3)
    assert last is None
    assert sum(group.share.value for group in use.groups) == pytest.approx(1)
    assert use.groups[2].share.value > use.groups[3].share.value
    assert use.ignored == ()
    assert 0 < use.everything.value < use.gain.value < 1
    assert json.loads(json.dumps(use.to_dict(), allow_nan=False))["ignored"] == []


def test_chunks_that_are_always_seen_are_worth_the_same_at_all_time_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    use = measure_ablation(plant(monkeypatch, visible="all"), banded(64, [0.4] * K))
    for group in use.groups:
        assert group.beyond is not None
        assert group.beyond.value == pytest.approx(group.own.value, rel=1e-3)
        assert group.share.value == pytest.approx(1 / K, abs=0.1)
    assert use.ignored == ()


def test_an_ignored_chunk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Warnings()
    use = measure_ablation(plant(monkeypatch, ignored=1), banded(16, [0.4] * K), reporter=reporter)
    assert use.ignored == (1,)
    assert use.groups[1].own.value == 0
    assert len(reporter.said) == 1
    assert "ignores chunk 1 (t 250-499)" in reporter.said[0]


def test_a_chunk_that_hardly_counts_is_ignored_though_it_can_be_told_from_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use = measure_ablation(plant(monkeypatch), banded(64, [0.8, 0.05, 0.8, 0.8]))
    assert use.groups[1].own.low > 0
    assert use.ignored == (1,)


def test_groups_count_from_their_first_chunk_on(monkeypatch: pytest.MonkeyPatch) -> None:
    images = banded(64, [0.4] * K)
    use = measure_ablation(plant(monkeypatch), images, groups=[(0, 1), (2, 3)])
    assert [group.timesteps for group in use.groups] == [(0, 500), (500, 1000)]
    alone = measure_ablation(plant(monkeypatch), images)
    together = sum(group.share.value for group in alone.groups[:2])
    assert use.groups[0].share.value == pytest.approx(together, abs=0.01)


def test_the_pipeline_without_features_loses_what_its_base_loses(make_pipeline: Any, images: torch.Tensor) -> None:
    pipeline = make_pipeline()
    gap = measure_model_gap(pipeline, images, timesteps=[10, 700], batch_size=3)
    alone = measure_gap(pipeline.unet, pipeline.schedule, images, timesteps=[10, 700])
    assert gap.without_features.error == pytest.approx(alone.error, rel=1e-3)
    assert gap.with_features.error != pytest.approx(alone.error, rel=1e-3)
    told = gap.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert len(gap.filled) == 2


def test_the_error_with_features_is_that_of_training(make_pipeline: Any, images: torch.Tensor) -> None:
    """Against the loss of stage 2: w_t (noise - estimate)^2 of the same noise, written with the image's error."""
    from diticli.models.reconstruction_gap import noisy_batches
    from diticli.training.objectives import FeatureObjective

    pipeline, t = make_pipeline(), 300
    gap = measure_model_gap(pipeline, images, timesteps=[t])
    objective = FeatureObjective(
        pipeline.unet, pipeline.encoder, pipeline.shift_decoder, pipeline.schedule, pipeline.chunks, "cumulative"
    )
    (x0, noise), *_ = noisy_batches(images, 0, 64, torch.device("cpu"))
    with torch.no_grad():
        loss = objective(x0, torch.full((len(x0),), t), noise).mean()
    bar = pipeline.schedule.alphas_cumprod[t]
    expected = loss / pipeline.schedule.loss_weight[t] * (1 - bar) / bar
    assert gap.with_features.error[0] == pytest.approx(float(expected), rel=1e-3)


def test_features_that_add_nothing_are_ignored_and_all_modes_stay(
    make_pipeline: Any, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_ablation, "POINTS", 4)
    pipeline = make_pipeline()
    for parameter in pipeline.shift_decoder.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    pipeline.encoder.train()
    reporter = Warnings()
    use = measure_ablation(pipeline, images, reporter=reporter, batch_size=5)
    assert pipeline.encoder.training
    assert use.ignored == (0, 1, 2, 3)
    assert use.gain.value == use.everything.value == 0
    assert "chunks 0-3" in reporter.said[0]
    gap = measure_model_gap(pipeline, images, timesteps=[10])
    assert gap.filled[0] == pytest.approx(0, abs=1e-6)


def test_uses_do_not_depend_on_the_batch_size(
    make_pipeline: Any, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_ablation, "POINTS", 4)
    pipeline = make_pipeline()
    found = [measure_ablation(pipeline, images, groups=[(0, 1), (2, 3)], batch_size=size) for size in (8, 3)]
    values = [[group.own.value for group in use.groups] for use in found]
    assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-6)
    assert np.isfinite(values).all()


def test_what_cannot_be_measured_is_refused(make_pipeline: Any, images: torch.Tensor) -> None:
    pipeline = make_pipeline()
    with pytest.raises(DataError, match="7 images are too few"):
        measure_ablation(pipeline, images[:7])
    with pytest.raises(ChunkError, match="9"):
        measure_ablation(pipeline, images, groups=[(9,)])
    alone = make_pipeline(unet=None, shift_decoder=None)
    for measure in (measure_ablation, measure_model_gap):
        with pytest.raises(ModelError, match="encoder alone"):
            measure(alone, images)


@pytest.mark.gpu
def test_a_gpu_measures_what_a_cpu_measures(make_pipeline: Any, images: torch.Tensor) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here = measure_model_gap(make_pipeline(), images, timesteps=[300])
    there = measure_model_gap(make_pipeline().to("cuda"), images, timesteps=[300])
    assert there.with_features.error == pytest.approx(here.with_features.error, rel=1e-2)
    assert len(measure_ablation(make_pipeline().to("cuda"), images).groups) == K
