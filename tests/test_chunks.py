import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diticli.chunks import PAPER_STAGE_DIMS, PAPER_STAGE_ENDS, ChunkLayout
from diticli.errors import ChunkError, ConfigError

TABLES = json.loads((Path(__file__).parent / "data" / "tables.json").read_text())
quick = settings(deadline=None, max_examples=60)


@st.composite
def uniform_layouts(draw):
    timesteps = draw(st.integers(1, 400))
    latent_dim = draw(st.integers(1, 200))
    chunks = draw(st.integers(1, min(timesteps, latent_dim)))
    return ChunkLayout.uniform(chunks=chunks, latent_dim=latent_dim, timesteps=timesteps)


@st.composite
def staged_layouts(draw):
    """Stages of at least T/K timesteps, so that a chunk starts in each."""
    timesteps = draw(st.integers(20, 300))
    chunks = draw(st.integers(2, timesteps // 2))
    shortest = -(-timesteps // chunks)
    ends = [0]
    while timesteps - ends[-1] >= 2 * shortest and len(ends) < 6 and draw(st.booleans()):
        ends.append(draw(st.integers(ends[-1] + shortest, timesteps - shortest)))
    stage_ends = (*ends[1:], timesteps)
    stage_dims = draw(st.lists(st.integers(1, 50), min_size=len(stage_ends), max_size=len(stage_ends)))
    # Dims that add up are taken as they are, and refused where a stage has fewer than chunks.
    latent_dim = draw(st.integers(chunks, 300).filter(lambda dims: dims != sum(stage_dims)))
    return ChunkLayout.staged(
        chunks=chunks,
        stage_ends=stage_ends,
        stage_dims=stage_dims,
        latent_dim=latent_dim,
        timesteps=timesteps,
    )


layouts = st.one_of(uniform_layouts(), staged_layouts())


@quick
@given(layouts)
def test_chunks_cut_every_dim_and_every_timestep_exactly_once(layout):
    T, d, K = layout.timesteps, layout.latent_dim, layout.chunks
    assert [i for k in range(K) for i in range(d)[layout.dims_of(k)]] == list(range(d))
    assert [t for a, b in zip(layout.timestep_starts, layout.timestep_ends, strict=True) for t in range(a, b)] == list(
        range(T)
    )
    assert layout.dim_mask(range(K)).all()


@quick
@given(layouts)
def test_tables_agree_with_each_other(layout):
    chunk_of = layout.timestep_to_chunk()
    assert chunk_of.shape == (layout.timesteps,)
    assert set(np.diff(chunk_of)) <= {0, 1}  # rises one by one: later timesteps see no less
    assert chunk_of[0] == 0
    assert chunk_of[-1] == layout.chunks - 1
    for t in {0, layout.timesteps // 2, layout.timesteps - 1}:
        chunk = layout.chunk_of(t)
        assert layout.timestep_starts[chunk] <= t < layout.timestep_ends[chunk]
        own = layout.starts[chunk], layout.ends[chunk]
        assert tuple(layout.own_dims()[t]) == own
        assert tuple(layout.visible_dims()[t]) == (0, own[1])
        everything = replace(layout, visible="all")
        assert tuple(everything.own_dims()[t]) == own
        assert tuple(everything.visible_dims()[t]) == (0, layout.latent_dim)
        for one in (layout, everything):
            seen = one.dim_mask(one.seen_by(chunk)).nonzero()[0]
            assert seen.tolist() == list(range(*one.visible_dims()[t]))


@quick
@given(uniform_layouts())
def test_uniform_slices_differ_by_at_most_one(layout):
    for ends in (layout.ends, layout.timestep_ends):
        sizes = [high - low for low, high in pairwise((0, *ends))]
        assert max(sizes) - min(sizes) <= 1


@quick
@given(layouts)
def test_dict_round_trip_survives_json(layout):
    for one in (layout, replace(layout, visible="all")):
        assert ChunkLayout.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@quick
@given(st.data(), layouts)
def test_what_describe_writes_parse_reads(data, layout):
    chosen = data.draw(st.sets(st.integers(0, layout.chunks - 1), min_size=1))
    text = layout.describe(tuple(chosen))
    names = re.fullmatch(r"chunks? ([\d,-]+) \(t [\d,-]+\)", text)[1]
    assert layout.parse(names) == tuple(sorted(chosen))
    assert layout.dim_mask(layout.parse(names)).sum() == sum(layout.ends[k] - layout.starts[k] for k in chosen)


@pytest.mark.parametrize("visible", ["suffix", "", None, ["all"], {"all": 1}, 3])
def test_only_prefixes_and_everything_can_be_visible(visible):
    with pytest.raises(ChunkError, match="is prefix or all, not"):
        ChunkLayout.from_dict({"timestep_ends": [5, 10], "ends": [2, 4], "visible": visible})
    assert ChunkLayout.from_dict({"timestep_ends": [5, 10], "ends": [2, 4]}).visible == "prefix"


def test_a_stage_of_fewer_dims_than_chunks_is_refused():
    with pytest.raises(ChunkError, match="at least one dimension"):
        ChunkLayout.staged(chunks=4, stage_ends=(50, 100), stage_dims=(1, 3), latent_dim=4, timesteps=100)


def test_one_chunk_is_everything():
    for layout in (
        ChunkLayout.uniform(chunks=1, latent_dim=7),
        ChunkLayout.staged(chunks=1, latent_dim=7),
    ):
        assert layout.ends == (7,)
        for one in (layout, replace(layout, visible="all")):
            assert (one.visible_dims() == [0, 7]).all()
            assert (one.own_dims() == [0, 7]).all()
        assert layout.parse("0") == (0,)


def test_official_tables():
    uniform, staged = ChunkLayout.uniform(chunks=64, latent_dim=512), ChunkLayout.staged(chunks=64)
    assert list(uniform.ends) == TABLES["uniform_k64_d512"]
    assert list(staged.ends) == TABLES["balanced_k64_d512"]
    for layout in (uniform, staged):
        assert layout.timestep_to_chunk().tolist() == TABLES["t_to_chunk_k64"]


@pytest.mark.parametrize("chunks", [20, 32, 64, 100])
@pytest.mark.parametrize("latent_dim", [128, 256, 512, 513])
def test_staged_dims_keep_the_papers_proportions(chunks, latent_dim):
    layout = ChunkLayout.staged(chunks=chunks, latent_dim=latent_dim)
    for low, high, dims in zip((0, *PAPER_STAGE_ENDS), PAPER_STAGE_ENDS, PAPER_STAGE_DIMS, strict=False):
        own = [k for k, start in enumerate(layout.timestep_starts) if low <= start < high]
        got = sum(layout.ends[k] - layout.starts[k] for k in own)
        wanted = dims * latent_dim / 512
        if wanted < len(own):  # every chunk needs a dim: a small stage takes some from the large ones
            assert got == len(own)
        else:
            assert len(own) <= got <= wanted + 1
    assert layout.latent_dim == latent_dim


def test_rescaling_that_needs_no_borrowing_is_exact_to_one_dim():
    layout = ChunkLayout.staged(chunks=20, latent_dim=1024)
    own = [
        sum(low <= start < high for start in layout.timestep_starts) for low, high in pairwise((0, *PAPER_STAGE_ENDS))
    ]
    ends = np.cumsum([0, *own])
    sizes = np.diff([0, *layout.ends])
    got = [sizes[a:b].sum() for a, b in pairwise(ends)]
    assert got == [2 * dims for dims in PAPER_STAGE_DIMS]


def test_quadratic_chunks_are_finer_at_small_timesteps():
    layout = ChunkLayout.quadratic(chunks=64, latent_dim=256)
    assert layout.timestep_ends[:12] == (1, 2, 3, 4, 7, 9, 12, 16, 20, 25, 30, 36)  # (11 / 64)^2 1000 = 29.5
    assert layout.timestep_ends[-3:] == (939, 969, 1000)
    assert layout.describe(range(10, 21)) == "chunks 10-20 (t 25-107)"
    assert set(np.diff([0, *layout.ends])) == {4}


@pytest.mark.parametrize(("chunks", "timesteps"), [(1, 1000), (10, 10), (9, 10), (64, 100), (64, 1000), (1000, 1000)])
def test_quadratic_chunks_all_have_a_timestep_and_end_at_the_last(chunks, timesteps):
    layout = ChunkLayout.quadratic(chunks=chunks, latent_dim=1024, timesteps=timesteps)
    assert layout.timesteps == timesteps
    assert np.bincount(layout.timestep_to_chunk(), minlength=chunks).min() >= 1


def test_a_stages_remainder_goes_to_its_last_chunk():
    layout = ChunkLayout.staged(chunks=4, stage_ends=(50, 100), stage_dims=(5, 7), timesteps=100)
    assert layout.ends == (2, 5, 8, 12)


@pytest.mark.parametrize("spec", ["3", "0-3,8", " 2 , 4 - 5 ", "5,5,4-5", "0-9"])
def test_parse_reads_inclusive_zero_based_lists(spec):
    layout = ChunkLayout.uniform(chunks=10, latent_dim=10)
    expected = {"3": (3,), "0-3,8": (0, 1, 2, 3, 8), " 2 , 4 - 5 ": (2, 4, 5), "5,5,4-5": (4, 5)}
    assert layout.parse(spec) == expected.get(spec, tuple(range(10)))


@pytest.mark.parametrize("spec", ["", ",", "a", "1-", "-1", "1--2", "0-3;4", "1.5", "²", "1-2-3", "9999999"])
def test_parse_refuses_what_it_cannot_read(spec):
    with pytest.raises(ChunkError, match="Cannot read the chunks") as error:
        ChunkLayout.uniform(chunks=10, latent_dim=10).parse(spec)
    assert repr(spec) in error.value.message
    assert "10-20" in error.value.remedy


def test_parse_names_the_chunk_that_does_not_exist():
    layout = ChunkLayout.uniform(chunks=10, latent_dim=10)
    with pytest.raises(ChunkError, match=r"Chunk 12 does not exist: this model has 10 chunks, 0-9\."):
        layout.parse("3,7-12")
    for chunk in (10, -11, 1.5):
        with pytest.raises(ChunkError, match=rf"Chunk {chunk} does not exist: this model has 10 chunks, 0-9\."):
            layout.dims_of(chunk)
    with pytest.raises(ChunkError, match="8-2 runs backwards") as error:
        layout.parse("8-2")
    assert error.value.remedy == "Write 2-8."


def test_describe_joins_neighbours_and_names_the_timesteps():
    layout = ChunkLayout.uniform(chunks=10, latent_dim=10, timesteps=100)
    assert layout.describe((3,)) == "chunk 3 (t 30-39)"
    assert layout.describe((8, 0, 1, 2)) == "chunks 0-2,8 (t 0-29,80-89)"


@pytest.mark.parametrize(
    ("timestep_ends", "ends", "message"),
    [
        ((), (), "as many dimension ends as timestep ends, got 0 and 0"),
        ((5, 10), (4,), "got 1 and 2"),
        ((5, 10), (4, 4), r"at least one dimension.*\[4, 4\]"),
        ((5, 5), (2, 4), r"at least one timestep.*\[5, 5\]"),
        ((5, 10), (0, 4), "at least one dimension"),
        ((-5, 10), (2, 4), "at least one timestep"),
    ],
)
def test_layouts_that_do_not_add_up(timestep_ends, ends, message):
    with pytest.raises(ChunkError, match=message):
        ChunkLayout(timestep_ends=timestep_ends, ends=ends)


@pytest.mark.parametrize(("chunks", "latent_dim"), [(0, 8), (-1, 8), (9, 8), (1001, 2000), (1, 0)])
@pytest.mark.parametrize("partition", [ChunkLayout.uniform, ChunkLayout.staged])
def test_chunk_counts_that_do_not_fit(partition, chunks, latent_dim):
    with pytest.raises(ChunkError, match=f"^{chunks} chunks do not fit {latent_dim} dimensions") as error:
        partition(chunks=chunks, latent_dim=latent_dim)
    assert "Choose between 1 and" in error.value.remedy


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"stage_ends": (50, 1000)}, "2 stage ends but 5 stage dims"),
        ({"stage_ends": (), "stage_dims": (), "latent_dim": 64}, "the last must be 1000"),
        ({"stage_ends": (50, 100, 300, 500, 900)}, "the last must be 1000, got .*900"),
        ({"stage_ends": (50, 100, 100, 500, 1000)}, "must increase"),
        ({"stage_ends": (0, 100, 300, 500, 1000)}, "must increase"),
        ({"stage_ends": (2, 3, 300, 500, 1000)}, "No chunk starts in the stage that ends at timestep 3"),
        ({"stage_dims": (10, 25, 327, 100, 20)}, "at least one dimension"),
        ({"stage_dims": (0, 0, 0, 0, 0), "latent_dim": 64}, "above zero.*0, 0"),
        ({"stage_dims": (-1, 26, 327, 100, 60), "latent_dim": 512}, "above zero"),
    ],
)
def test_stages_that_do_not_fit(stages, message):
    with pytest.raises(ChunkError, match=message):
        ChunkLayout.staged(chunks=64, **stages)


def test_too_few_chunks_for_the_stages_says_how_long_a_chunk_is():
    with pytest.raises(ChunkError, match=r"with 4 chunks each spans 250\.0 timesteps") as error:
        ChunkLayout.staged(chunks=4)
    assert "more chunks" in error.value.remedy


@pytest.mark.parametrize(
    "data", [{}, {"ends": [4]}, {"ends": [4], "timestep_ends": None}, {"ends": ["x"], "timestep_ends": [9]}]
)
def test_from_dict_refuses_what_is_no_layout(data):
    with pytest.raises(ChunkError, match="not a chunk layout"):
        ChunkLayout.from_dict(data)


@pytest.mark.parametrize(("key", "what"), [("timestep_ends", "100,000 timesteps"), ("ends", "1,000,000 dimensions")])
def test_layouts_that_would_fill_the_memory_are_refused(key, what):
    data = {"timestep_ends": [500, 1000], "ends": [1, 4]}
    for huge in (10**15, 10**40):
        with pytest.raises(ChunkError, match=f"at most {what}") as caught:
            ChunkLayout.from_dict(data | {key: [1, huge]})
        assert caught.value.remedy


def test_from_dict_keeps_the_message_of_a_layout_that_does_not_add_up():
    with pytest.raises(ChunkError, match="at least one dimension"):
        ChunkLayout.from_dict({"ends": [4, 2], "timestep_ends": [5, 10]})


def test_a_layout_is_immutable_and_a_chunk_error_is_a_config_error():
    layout = ChunkLayout.uniform(chunks=2, latent_dim=4)
    with pytest.raises(AttributeError):
        layout.ends = (1, 2)
    assert hash(layout) == hash(ChunkLayout.uniform(chunks=2, latent_dim=4))
    assert issubclass(ChunkError, ConfigError)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_timestep_outside_the_schedule_is_an_error(timestep):
    with pytest.raises(ChunkError, match="outside 0"):
        ChunkLayout.uniform(chunks=4, latent_dim=16).chunk_of(timestep)


def test_fractional_ends_are_refused_not_rounded():
    with pytest.raises(ChunkError, match="not a chunk layout"):
        ChunkLayout.from_dict({"timestep_ends": [500, 1000], "ends": [1.5, 4]})


@quick
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(any), st.integers(0, 300))
def test_dims_follow_amounts_to_within_one(amounts, spare):
    layout = ChunkLayout.in_proportion(amounts, latent_dim=len(amounts) + spare)
    sizes = np.diff((0, *layout.ends))
    uniform = ChunkLayout.uniform(chunks=len(amounts), latent_dim=layout.latent_dim)
    assert sizes.sum() == layout.latent_dim
    assert layout.timestep_ends == uniform.timestep_ends
    assert np.all(np.abs(sizes - 1 - spare * np.array(amounts) / sum(amounts)) <= 1)


@pytest.mark.parametrize("amounts", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf"), 1.0]])
def test_amounts_that_cannot_be_followed_are_refused(amounts):
    with pytest.raises(ChunkError, match="Amounts"):
        ChunkLayout.in_proportion(amounts, latent_dim=8)
