import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from diticli.errors import ConfigError
from diticli.evaluation.image_metrics import ssim


def images(*shape, seed=0):
    return torch.empty(*(shape or (3, 3, 16, 20))).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))


def by_scipy(a, b):
    """The same formula as scikit-image writes it (gaussian_weights=True, use_sample_covariance=False)."""

    def blur(x):
        return gaussian_filter(x, sigma=1.5, truncate=3.5)

    a, b = (a + 1) / 2, (b + 1) / 2
    ux, uy = blur(a), blur(b)
    vx, vy, vxy = blur(a * a) - ux * ux, blur(b * b) - uy * uy, blur(a * b) - ux * uy
    c1, c2 = 0.01**2, 0.03**2
    values = ((2 * ux * uy + c1) * (2 * vxy + c2)) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    return values[5:-5, 5:-5].mean()


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_agrees_with_the_formula_written_another_way(noise):
    a = images()
    b = (a + noise * images(seed=1)).clamp(-1, 1)
    planes = zip(a.flatten(0, 1).double().numpy(), b.flatten(0, 1).double().numpy(), strict=True)
    expected = np.array([by_scipy(*pair) for pair in planes]).reshape(3, 3).mean(1)
    np.testing.assert_allclose(ssim(a, b).numpy(), expected, rtol=0, atol=1e-10)


def test_equal_images_are_alike_and_negatives_are_not():
    a = images()
    torch.testing.assert_close(ssim(a, a), torch.ones(3, dtype=torch.float64))
    assert ssim(a, -a).max() < -0.5
    assert torch.equal(ssim(a, a.flip(0)), ssim(a.flip(0), a))
    flat = torch.full((1, 3, 11, 11), 0.25)
    assert ssim(flat, flat).item() == pytest.approx(1)
    assert ssim(a[:0], a[:0]).shape == (0,)


def test_more_noise_is_less_alike():
    a = images()
    values = [float(ssim(a, a + s * images(seed=1)).mean()) for s in (0.05, 0.2, 0.8)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("shapes", [((1, 3, 16, 16), (1, 3, 16, 17)), ((1, 3, 10, 16),) * 2, ((3, 16, 16),) * 2])
def test_images_that_cannot_be_compared(shapes):
    with pytest.raises(ConfigError, match="at least 11 pixels") as error:
        ssim(*(torch.zeros(shape) for shape in shapes))
    assert error.value.remedy
