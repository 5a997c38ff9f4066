import math

import numpy as np
import pytest
import torch
from readable_pipeline import LAYOUT, SIZE

from diticli.editing.mixing import alpha_text, mix_chunks, parse_alphas, parse_numbers, slerp
from diticli.errors import ChunkError, ConfigError


def test_slerp_ends_and_stays_on_the_sphere():
    a, b = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    b *= (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    assert torch.allclose(middle.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-5)
    assert middle.dtype == torch.float32


def test_slerp_agrees_with_the_formula_and_takes_one_alpha_a_sample():
    a, b = torch.randn(4, 2, 5).double(), torch.randn(4, 2, 5).double()
    alpha = torch.tensor([0.0, 0.25, 0.7, 1.0])
    mixed = slerp(a, b, alpha)
    for i in range(4):
        x, y = a[i].flatten().numpy(), b[i].flatten().numpy()
        theta = math.acos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        w = float(alpha[i])
        expected = (math.sin((1 - w) * theta) * x + math.sin(w * theta) * y) / math.sin(theta)
        np.testing.assert_allclose(mixed[i].flatten().numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_slerp_of_parallel_vectors_is_the_straight_line(factor):
    a = torch.randn(2, 3, 4, 4)
    assert torch.allclose(slerp(a, factor * a, 0.25), torch.lerp(a, factor * a, 0.25), atol=1e-5)


def test_mix_changes_only_the_chosen_slices():
    z_a, z_b = torch.randn(2, SIZE), torch.randn(2, SIZE)
    mixed = mix_chunks(z_a, z_b, LAYOUT, (0, 2), torch.tensor([0.25, 1.0]))
    for dims, chosen in (
        (slice(0, 2), True),
        (slice(2, 4), False),
        (slice(4, 6), True),
        (slice(6, 8), False),
    ):
        if chosen:
            assert torch.allclose(mixed[0, dims], 0.75 * z_a[0, dims] + 0.25 * z_b[0, dims])
            assert torch.equal(mixed[1, dims], z_b[1, dims])
        else:
            assert torch.equal(mixed[:, dims], z_a[:, dims])


def test_mix_refuses_wrong_chunks_and_widths():
    z = torch.zeros(1, SIZE)
    with pytest.raises(ChunkError, match="Chunk 4"):
        mix_chunks(z, z, LAYOUT, (4,), 1.0)
    with pytest.raises(ChunkError):
        mix_chunks(z, z, LAYOUT, (-1,), 1.0)
    with pytest.raises(ConfigError, match="8 dims"):
        mix_chunks(torch.zeros(1, 7), torch.zeros(1, 7), LAYOUT, (0,), 1.0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("0:1:5", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("0,0.5,1", (0.0, 0.5, 1.0)),
        ("1", (1.0,)),
        ("0:1:1", (0.0,)),
        ("1:0:3", (1.0, 0.5, 0.0)),
        ("-0.5, 1.5", (-0.5, 1.5)),
        ("1,1,0.00001", (1.0, 0.0)),
    ],
)
def test_alphas(spec, expected):
    assert parse_alphas(spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "x",
        "0:1",
        "0:1:0",
        "0:1:-2",
        "0:1:51",
        "0:1:2.5",
        "nan",
        "inf",
        "0:inf:3",
        "0,9",
        "0:1:2:3",
        "1,,2",
    ],
)
def test_bad_alphas_say_what_to_write(spec):
    with pytest.raises(ConfigError) as caught:
        parse_alphas(spec)
    assert caught.value.remedy


def test_alpha_text_tells_alphas_apart():
    texts = {alpha_text(alpha) for alpha in parse_alphas("0.5:1:50")}
    assert len(texts) == 50
    assert [alpha_text(a) for a in (0.0, 0.5, 1.0, 0.3333)] == ["0.00", "0.50", "1.00", "0.3333"]


def test_numbers_have_their_own_limit_and_words():
    assert parse_numbers("-1:1:3", "amount", 10.0, remedy="r") == (-1.0, 0.0, 1.0)
    with pytest.raises(ConfigError, match="amount 11 lies outside ±10") as caught:
        parse_numbers("11", "amount", 10.0, remedy="less")
    assert caught.value.remedy == "less"
