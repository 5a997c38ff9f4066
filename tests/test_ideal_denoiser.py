"""Truth without training: of a finite set of pictures the ideal noise estimate is known in closed form.

eps*(x, t) = (x - sqrt(abar) E[x_0 | x]) / sqrt(1 - abar), E[x_0 | x] the pictures' mean under the weights
softmax(-|x - sqrt(abar) x_i|^2 / (2 (1 - abar))). Samplers, exchanges of chunks and half-lives under noise must agree.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diticli import sampling
from diticli.chunks import ChunkLayout
from diticli.data.labels import LabelColumn
from diticli.editing.pair import Edit, edit_pair
from diticli.editing.settings import EditSettings
from diticli.evaluation import attribute_survival
from diticli.pictures.grids import psnr, to_uint8
from diticli.schedule import NoiseSchedule

SIDE = 4
SCHEDULE = NoiseSchedule(1 - torch.linspace(1e-4, 0.02, 1000))
BAR = SCHEDULE.alphas_cumprod
LAYOUT = ChunkLayout.uniform(chunks=2, latent_dim=2)


def pictures() -> dict[tuple[int, int], torch.Tensor]:
    """(pattern, colour) -> a picture [3, 4, 4] in [-1, 1]: two factors with two values each."""
    patterns = torch.stack([torch.eye(SIDE), torch.eye(SIDE).flip(0)]) * 0.8 - 0.4
    colours = torch.tensor([[0.5, -0.4, 0.1], [-0.5, 0.2, 0.4]])
    return {
        (p, c): patterns[p].expand(3, SIDE, SIDE) + colours[c][:, None, None]
        for p, c in itertools.product((0, 1), (0, 1))
    }


DATA = pictures()
EVERY = torch.stack(list(DATA.values()))


def ideal_noise(x_BCHW: torch.Tensor, t: int, data_NCHW: torch.Tensor) -> torch.Tensor:
    bar = BAR[t].double()
    x, data = x_BCHW.double(), data_NCHW.double()
    distances_BN = (x[:, None] - bar.sqrt() * data[None]).square().sum(dim=(2, 3, 4))
    weights_BN = (-distances_BN / (2 * (1 - bar))).softmax(dim=1)
    mean = torch.einsum("bn,nchw->bchw", weights_BN, data)
    return ((x - bar.sqrt() * mean) / (1 - bar).sqrt()).float()


@pytest.mark.parametrize("t", [3, 200, 700])
def test_the_ideal_estimate_is_the_score(t):
    """eps* = -sqrt(1 - abar) grad log p_t, here by automatic differentiation of the mixture of Gaussians."""
    bar = BAR[t].double()
    x = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    distances = (x[:, None] - bar.sqrt() * EVERY.double()[None]).square().sum(dim=(2, 3, 4))
    torch.logsumexp(-distances / (2 * (1 - bar)), dim=1).sum().backward()
    expected = -(1 - bar).sqrt() * x.grad
    torch.testing.assert_close(ideal_noise(x.detach(), t, EVERY).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("solver", "steps"), [("dpm", 40), ("ddim", 100)])
def test_decoding_ends_at_a_picture_and_inversion_leads_back(solver, steps):
    noise = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def estimate(x, t):
        return ideal_noise(x, t, EVERY)

    drawn = sampling.decode(estimate, noise, BAR, steps=steps, solver=solver)
    nearest = torch.cdist(drawn.flatten(1), EVERY.flatten(1)).min(dim=1)
    assert nearest.values.max() < 0.1  # DPM ends at t = 0, noise of 0.01 in each of 48 values: 0.07
    assert len(nearest.indices.unique()) == len(EVERY), "16 draws of 4 pictures show all of them"
    x_T = sampling.invert(estimate, EVERY, BAR, steps=steps, solver=solver)
    back = sampling.decode(estimate, x_T, BAR, steps=steps, solver=solver)
    assert psnr(back, EVERY) > 35


class IdealModel:
    """z = (pattern, colour), a chunk each; at t the data are the pictures that agree with what t sees of z."""

    chunks, resolution, model_hash = LAYOUT, SIDE, "ideal"

    def preprocess(self, images):
        return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1

    def encode(self, images):
        found = torch.cdist(images.flatten(1), EVERY.flatten(1)).argmin(dim=1).tolist()
        return torch.tensor([list(DATA)[i] for i in found], dtype=torch.float32)

    def sampler(self, *, solver="dpm", **_):
        self.solver = solver
        return self

    def _estimate(self, z):
        chunk_T = LAYOUT.timestep_to_chunk()

        def estimate(x, t):
            seen, rows = range(LAYOUT.ends[chunk_T[t]]), []  # a prefix, as published
            for x_1, z_1 in zip(x[:, None], z.round().int().tolist(), strict=True):
                agree = [p for f, p in DATA.items() if all(f[d] == z_1[d] for d in seen)]
                rows.append(ideal_noise(x_1, t, torch.stack(agree)))
            return torch.cat(rows)

        return estimate

    def invert(self, images, z, steps=20, *, callback=None):
        return sampling.invert(self._estimate(z), images, BAR, steps=steps, solver=self.solver, callback=callback)

    def decode(self, x_T, z, steps=20, *, callback=None):
        return sampling.decode(self._estimate(z), x_T, BAR, steps=steps, solver=self.solver, callback=callback)


@pytest.mark.parametrize("solver", ["dpm", "ddim"])
def test_an_exchanged_chunk_exchanges_its_factor_and_nothing_else(solver):
    a, b = (Image.fromarray(to_uint8(DATA[factors][None])[0]) for factors in ((0, 1), (1, 0)))
    settings = EditSettings(solver=solver, invert_steps=40, decode_steps=40)
    result = edit_pair(IdealModel(), a, b, [(0,), (1,), (0, 1)], (1.0,), settings=settings)
    assert min(result.psnr) > 35
    wanted = {("a", (0,)): (1, 1), ("a", (1,)): (0, 0), ("a", (0, 1)): (1, 0), ("b", (0,)): (0, 0), ("b", (1,)): (1, 1)}
    for (side, chunks), factors in wanted.items():
        assert psnr(result.edits[Edit(side, chunks, 1.0)], to_uint8(DATA[factors][None])[0]) > 35, (side, chunks)


def test_an_attribute_is_lost_where_the_ideal_reader_loses_it(monkeypatch):
    """Two pictures: x_t tells which with SNR q = abar / (1 - abar) |x_1 - x_0|^2 / 4, and the best estimate of the
    label +-1 explains E[tanh(q + sqrt(q) z)] of its variance, z standard Gaussian (a binary signal in Gaussian noise).
    """
    levels = torch.tensor([118, 138], dtype=torch.uint8)
    which = np.tile([0, 1], 400)
    images = levels[torch.from_numpy(which)][:, None, None, None].expand(-1, 3, SIDE, SIDE).contiguous()
    two = images[:2].float() / 127.5 - 1

    class IdealReader:
        def read(self, x_t, t):
            bar = BAR[t]
            distances_BN = (x_t[:, None] - bar.sqrt() * two[None]).square().sum(dim=(2, 3, 4))
            p = (-distances_BN / (2 * (1 - bar))).softmax(dim=1)[:, 1:].double().numpy()
            return (p - self.mean) / self.std

    def trained(images, labels, train, *_, **__):
        reader = IdealReader()
        reader.mean, reader.std = which[train].mean(), which[train].std()
        return reader

    monkeypatch.setattr(attribute_survival, "train_noisy_classifier", trained)
    found = attribute_survival.measure_survival(
        images, {"side": LabelColumn("binary", which.astype(float))}, SCHEDULE, grid=80, resamples=50
    )
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    separation = float((two[1] - two[0]).square().sum())
    q_T = (BAR / (1 - BAR)).double().numpy() * separation / 4
    explained_T = [float((np.tanh(q + math.sqrt(q) * z) * weights).sum() / math.sqrt(2 * math.pi)) for q in q_T]
    truth = int(np.argmax(np.array(explained_T) < 0.5))
    half = found.half["side"]
    assert abs(half.value - truth) < 40
    assert half.low - 15 < truth < half.high + 15
