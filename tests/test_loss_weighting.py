"""Loss weights over timesteps, and the bottleneck of the features."""

import json

import pytest
import torch

from diticli.chunks import ChunkLayout
from diticli.config_groups import ModularityConfig
from diticli.distributed import Rank
from diticli.errors import ConfigError
from diticli.models.build import build_unet, new_scheduler
from diticli.models.encoder import SemanticEncoder
from diticli.models.reconstruction_gap import GapCurve
from diticli.models.shift_decoder import ShiftDecoder
from diticli.schedule import NoiseSchedule
from diticli.settings import build_config
from diticli.training.batches import StepNoise
from diticli.training.loss_weighting import kl_scale, loss_weights, noise_error
from diticli.training.objectives import FeatureObjective
from diticli.training.run import train
from tests.test_partition import TINY
from tests.tiny_models import perturb

SCHEDULE = NoiseSchedule.from_scheduler(new_scheduler())


def curve(noise_errors):
    """A gap curve whose base has these errors of the noise estimate."""
    bar = SCHEDULE.alphas_cumprod[list(noise_errors)].double()
    image = (torch.tensor(list(noise_errors.values())).double() * (1 - bar) / bar).tolist()
    return GapCurve(
        timesteps=tuple(noise_errors),
        error=tuple(image),
        stderr=tuple(image),
        clamped=tuple(image),
        clamped_stderr=tuple(image),
        images=1,
        total_timesteps=1000,
    )


def objective(**options):
    torch.manual_seed(0)
    config = build_config("faces32", assignments=TINY)
    unet = build_unet(config.unet, 16)
    encoder = SemanticEncoder(sample_size=16, widths=(32, 32), latent_dim=8, attention_size=0, norm_num_groups=8)
    decoder = perturb(ShiftDecoder.for_unet(unet, 8))  # its zeros would hide the features
    layout = ChunkLayout.uniform(chunks=4, latent_dim=8)
    return FeatureObjective(unet, encoder, decoder, SCHEDULE, layout, "detached", **options)


def inputs(batch=4):
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.rand(2, batch, 3, 16, 16, generator=generator) * 2 - 1
    return x0, torch.randint(1000, (batch,), generator=generator), noise


def test_the_noise_error_goes_through_what_was_measured():
    errors = noise_error(SCHEDULE, curve({100: 0.04, 300: 0.01}))
    assert errors[[100, 300]].tolist() == pytest.approx([0.04, 0.01], rel=1e-5)
    assert errors[200].item() == pytest.approx(0.02, rel=1e-5)  # halfway in log
    assert errors[[0, 999]].tolist() == pytest.approx([0.04, 0.01], rel=1e-5)


@pytest.mark.parametrize("weighting", ["pdae", "uniform", "gap"])
def test_the_base_alone_scores_one(weighting):
    gap = curve({50: 0.06, 400: 0.008, 900: 0.002})
    weights = loss_weights(SCHEDULE, gap, weighting)
    assert (weights * noise_error(SCHEDULE, gap)).mean().item() == pytest.approx(1, rel=1e-5)
    shape = {
        "pdae": SCHEDULE.loss_weight,
        "uniform": torch.ones(1000),
        "gap": 1 / noise_error(SCHEDULE, gap),
    }[weighting]
    torch.testing.assert_close(weights / weights[500], shape / shape[500])


def test_the_published_loss_is_the_default():
    assert not ModularityConfig().relative
    plain = objective()
    torch.testing.assert_close(plain.weight_T, SCHEDULE.loss_weight, rtol=0, atol=0)
    assert plain.feature_noise == 0


def test_a_bottleneck_prices_the_nats_of_noisy_features():
    x0, t, noise = inputs()
    scale = torch.arange(1.0, 9.0)
    bottlenecked, free = objective(kl_scale_D=scale), objective()
    beta = torch.tensor(0.25)
    feature_noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    losses = bottlenecked(x0, t, noise, feature_noise, beta)
    cost = 0.5 * (bottlenecked.encoder(x0).square() * scale).sum(dim=1)
    torch.testing.assert_close(losses.total_B, losses.noise_B + 0.25 * cost)
    assert not torch.allclose(losses.noise_B, free(x0, t, noise))  # the decoder sees the noise
    torch.testing.assert_close(bottlenecked(x0, t, noise, torch.zeros(4, 8), beta).noise_B, free(x0, t, noise))


def test_the_price_reaches_every_dim_even_where_the_loss_is_detached():
    x0, _, noise = inputs()
    t = torch.full((4,), 999)
    weights = []
    for scale in (None, torch.ones(8)):
        it = objective(kl_scale_D=scale)
        loss = it(x0, t, noise) if scale is None else it(x0, t, noise, torch.zeros(4, 8), torch.tensor(0.25)).total_B
        loss.mean().backward()
        weights.append(it.encoder.head.weight.grad.abs().sum(dim=1))
    assert weights[0][:6].tolist() == [0] * 6  # t = 999 belongs to the last chunk, dims 6 and 7
    assert (weights[1] > 0).all()


def test_a_degree_of_freedom_is_worth_the_loss_of_one_value_over_the_time_steps_of_its_chunk():
    """A base off by everything at t < 250 and by a tenth after: one value of 48 missed at the timesteps of a chunk."""
    error = torch.where(torch.arange(1000) < 250, 1.0, 0.1)
    weights = 1 / error
    layout = ChunkLayout(timestep_ends=(250, 500, 1000), ends=(1, 3, 4))
    scale = kl_scale(weights, layout, values=48)
    assert scale.tolist() == pytest.approx([0.25 / 48, 0.25 * 10 / 48, 0.25 * 10 / 48, 0.5 * 10 / 48])
    # All 48 values of all chunks are the whole loss of an estimate that is off by one everywhere.
    chunks = scale[[0, 1, 3]].sum() * 48
    assert chunks.item() == pytest.approx(weights.mean().item())


def test_feature_noise_is_the_same_however_many_processes_share_it():
    def noise(index, count):
        rank = Rank(index=index, count=count)
        return StepNoise(seed=3, stage="features", timesteps=10, batch_size=8, flip=False, rank=rank)

    cpu = torch.device("cpu")
    whole = noise(0, 1).draw_features(5, 6, cpu)
    torch.testing.assert_close(torch.cat([noise(r, 2).draw_features(5, 6, cpu) for r in (0, 1)]), whole, rtol=0, atol=0)
    assert not torch.equal(whole, noise(0, 1).draw_features(6, 6, cpu))


def test_a_run_with_a_bottleneck_trains_and_says_so(tmp_path):
    config = build_config(
        "faces32", assignments=(*TINY, "modularity.weighting=gap", "modularity.bottleneck=1e-3", "log_every=1")
    )
    train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["modularity"]["bottleneck"] == 1e-3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] < 10 for line in lines if line["stage"] == "features")
    assert (tmp_path / "run" / "gap.json").is_file()


def test_the_price_rises_over_the_first_part_of_the_steps():
    modularity = ModularityConfig(bottleneck=2.0, bottleneck_rise=0.5)
    assert [modularity.beta(progress) for progress in (0, 0.25, 0.5, 1)] == [0, 1, 2, 2]
    assert ModularityConfig(bottleneck=2.0, bottleneck_rise=0).beta(0) == 2


def test_a_negative_price_is_refused():
    with pytest.raises(ConfigError, match="bottleneck"):
        ModularityConfig(bottleneck=-1.0)
    with pytest.raises(ConfigError, match="bottleneck_rise"):
        ModularityConfig(bottleneck_rise=1.5)
