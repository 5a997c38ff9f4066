"""The chunk tables of official configs."""

import json
from pathlib import Path

import pytest

from diticli.chunks import ChunkLayout
from diticli.errors import ChunkError, ModelError
from diticli.official.chunks import official_chunks

TABLES = json.loads((Path(__file__).parent / "data" / "tables.json").read_text())


def test_chunks_of_the_official_configs():
    uniform = official_chunks({"k": 64}, 512, 1000)
    assert list(uniform.layout.ends) == TABLES["uniform_k64_d512"]
    assert uniform.layout.timestep_to_chunk().tolist() == TABLES["t_to_chunk_k64"]
    assert uniform.partition == "uniform"
    staged = {"k": 64, "stages": "50,100,300,500,1000", "dims_per_stage": "10,25,327,100,50"}
    assert list(official_chunks(staged, 512, 1000).layout.ends) == TABLES["balanced_k64_d512"]
    assert official_chunks(staged, 512, 1000) == (ChunkLayout.staged(chunks=64), "staged", ())
    for pdae in (None, {}, {"k": 1}, {"k": 1, "stages": "1000"}):
        assert official_chunks(pdae, 512, 1000).layout == ChunkLayout.uniform(chunks=1, latent_dim=512)


@pytest.mark.parametrize("chunks", [2, 3, 6, 7, 16, 20, 63, 100])
def test_uniform_chunks_are_ours(chunks):
    assert official_chunks({"k": chunks}, 512, 1000).layout == ChunkLayout.uniform(chunks=chunks, latent_dim=512)


def test_chunks_unequal_in_time():
    """1 chunk below t = 100, then two: the official code divides by a stage's end, so the border is at 500, not 550."""
    config = {"k": 3, "stages": "100,1000", "k_per_stage": "1,2", "dims_per_stage": "4,12"}
    chunks = official_chunks(config, 16, 1000)
    assert chunks.layout == ChunkLayout(timestep_ends=(100, 500, 1000), ends=(4, 10, 16))
    assert chunks.partition == "staged in time"


def test_chunks_that_no_timestep_uses_are_joined():
    """Below 500 chunks 0 and 1; above, t / 1000 * 4 begins at chunk 2 + 2."""
    chunks = official_chunks({"k": 6, "stages": "500,1000", "k_per_stage": "2,4"}, 12, 1000)
    assert chunks.layout == ChunkLayout(timestep_ends=(250, 500, 750, 1000), ends=(2, 4, 10, 12))
    assert "2 of the 6 chunks" in chunks.notes[0]
    with pytest.raises(ModelError, match="no timestep to chunk 2"):
        official_chunks({"k": 6, "stages": "500,1000", "k_per_stage": "2,4", "dims_per_stage": "6,6"}, 12, 1000)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"k": "many"}, "ssl_config.k should hold whole numbers"),
        ({"k": 0}, "k = 0 does not fit"),
        ({"k": 17}, "k = 17 does not fit 16"),
        ({"k": 2, "dims_per_stage": "8,8"}, "no stages"),
        ({"k": 2, "stages": "500,900", "dims_per_stage": "8,8"}, "stages must rise to 1000"),
        ({"k": 2, "stages": "500,1000", "dims_per_stage": "8,9"}, "dims_per_stage must be 2 numbers that sum to 16"),
        ({"k": 2, "stages": "500,1000", "k_per_stage": "1,1,1"}, "k_per_stage must be 2 numbers that sum to 2"),
        ({"k": 2, "stages": "500,1000", "dims_per_stage": "8,x"}, "whole numbers, got 'x'"),
    ],
)
def test_impossible_chunks(config, says):
    with pytest.raises(ModelError, match=says):
        official_chunks(config, 16, 1000)


def test_rounding_that_loses_a_dimension_is_refused():
    """512 / 49 * 49 is a little below 512 in floating point."""
    with pytest.raises(ModelError, match="rounds the last chunk's end to 511"):
        official_chunks({"k": 49}, 512, 1000)


def test_a_stage_without_dimensions_is_no_layout():
    with pytest.raises(ChunkError):
        official_chunks({"k": 2, "stages": "500,1000", "dims_per_stage": "0,16"}, 16, 1000)
