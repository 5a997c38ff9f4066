"""Statistics of features without labels, on features whose spectrum is known."""

import json

import numpy as np
import pytest

from diticli.chunks import ChunkLayout
from diticli.disentanglement import measure_statistics
from diticli.disentanglement.feature_statistics import effective_rank
from diticli.errors import FeatureFileError


def white(rows: int, dims: int, seed: int = 0) -> np.ndarray:
    """[N, d] columns that are exactly uncorrelated, of variance 1 and mean 0."""
    values = np.random.default_rng(seed).standard_normal((rows, dims))
    basis = np.linalg.qr(values - values.mean(axis=0))[0]
    return basis * np.sqrt(rows - 1)


def test_ranks_of_a_flat_spectrum_count_its_dims() -> None:
    found = measure_statistics(white(500, 8).astype(np.float32))
    assert (found.rows, found.dims, found.active_dims) == (500, 8, 8)
    assert found.variance == pytest.approx(8, rel=1e-5)
    assert found.effective_rank == pytest.approx(8, rel=1e-5)
    assert found.participation_ratio == pytest.approx(8, rel=1e-5)
    assert (found.chunks, found.chunk_correlation, found.mean_chunk_correlation) == ((), (), None)


def test_ranks_of_a_known_spectrum() -> None:
    scale = np.sqrt([4.0, 2.0, 1.0, 1.0])
    shares = np.square(scale) / 8
    found = measure_statistics((white(400, 4) * scale).astype(np.float32))
    assert found.effective_rank == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-4)
    assert found.participation_ratio == pytest.approx(64 / 22, rel=1e-4)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    turned = measure_statistics((white(400, 4) * scale @ turn).astype(np.float32))
    assert turned.effective_rank == pytest.approx(found.effective_rank, rel=1e-4)


def test_chunks_share_variance_and_correlate_up_to_rotation() -> None:
    base = white(600, 6)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((2, 2)))[0]
    codes = np.concatenate([base[:, :2], 3 * base[:, :2] @ turn, base[:, 2:4], np.full((600, 2), 5.0)], axis=1)
    found = measure_statistics(codes.astype(np.float32), ChunkLayout.uniform(chunks=4, latent_dim=8))
    assert [chunk.share for chunk in found.chunks] == pytest.approx([2 / 22, 18 / 22, 2 / 22, 0], rel=1e-4)
    assert [chunk.effective_rank for chunk in found.chunks] == pytest.approx([2, 2, 2, 0], rel=1e-4)
    assert [chunk.active_dims for chunk in found.chunks] == [2, 2, 2, 0]
    expected = np.zeros((4, 4))
    expected[:2, :2] = 1
    expected[2, 2] = 1
    assert np.array(found.chunk_correlation) == pytest.approx(expected, abs=1e-4)
    assert found.mean_chunk_correlation == pytest.approx(1 / 6, abs=1e-4)


def test_chunk_correlation_is_linear_cka() -> None:
    rng = np.random.default_rng(3)
    codes = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 7))
    found = measure_statistics(codes, ChunkLayout(timestep_ends=(500, 1000), ends=(3, 7)))
    centred = codes - codes.mean(axis=0)
    kernels = [part @ part.T for part in (centred[:, :3], centred[:, 3:])]
    cka = np.sum(kernels[0] * kernels[1]) / np.prod([np.linalg.norm(kernel) for kernel in kernels])
    assert found.chunk_correlation[0][1] == pytest.approx(cka)


def test_blocks_and_large_means_cost_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = white(300, 3) + 1e3
    whole = measure_statistics(codes)
    monkeypatch.setattr("diticli.disentanglement.feature_statistics._BLOCK_ROWS", 64)
    found = measure_statistics(codes)
    assert found.variance == pytest.approx(whole.variance)
    assert found.effective_rank == pytest.approx(whole.effective_rank)
    assert whole.effective_rank == pytest.approx(3, rel=1e-6)


def test_faint_dims_are_not_active() -> None:
    codes = white(300, 4) * np.array([1, 1, 0.05, 0])
    found = measure_statistics(codes)
    assert found.active_dims == 2
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["active_dims"] == 2


def test_a_zero_matrix_has_no_rank() -> None:
    assert effective_rank(np.zeros((3, 3))) == 0


@pytest.mark.parametrize(
    ("codes", "layout", "text"),
    [
        (np.ones((5, 3)), None, "All 3 features are constant"),
        (np.ones((1, 3)), None, "1 rows of features"),
        (np.full((5, 3), np.inf), None, "not finite"),
        (np.ones((5, 3)), ChunkLayout.uniform(chunks=2, latent_dim=4), "cover 4 dimensions"),
    ],
)
def test_what_has_no_statistics_is_refused(codes: np.ndarray, layout: ChunkLayout | None, text: str) -> None:
    with pytest.raises(FeatureFileError, match=text):
        measure_statistics(codes.astype(np.float32), layout)
