"""What must hold for every layout, range, table, order and pattern, not only for the examples of the other tests."""

import json
import string
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diticli.chunks import ChunkLayout
from diticli.data.images import Skipped
from diticli.data.names import expand_pattern, unique_names
from diticli.distributed import Rank
from diticli.editing.mixing import ALPHA_LIMIT, MAX_ALPHAS, parse_alphas
from diticli.errors import ChunkError, ConfigError
from diticli.features.formats import CONVERTERS
from diticli.features.read import FeatureMeta, read_features
from diticli.training.batches import DataOrder, MemoryFeed

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=60)
steady = settings.get_profile("steady")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hypothesis runs a test many times in one call, so its files are overwritten."""
    return tmp_path_factory.mktemp("properties")


# chunk layouts


@st.composite
def any_layouts(draw):
    """Any that can be saved, not only those that the two recipes make."""
    chunks = draw(st.integers(1, 12))
    steps = [draw(st.lists(st.integers(1, 40), min_size=chunks, max_size=chunks)) for _ in range(2)]
    timestep_ends, ends = (tuple(np.cumsum(sizes).tolist()) for sizes in steps)
    return ChunkLayout(timestep_ends=timestep_ends, ends=ends)


def assert_partition(layout):
    """Every timestep in one chunk, every dim in one slice, and the tables derived from nothing else."""
    assert layout.ends[-1] == layout.latent_dim == sum(b - a for a, b in pairwise((0, *layout.ends)))
    t = np.arange(layout.timesteps)
    starts, ends = (np.array(v)[:, None] for v in (layout.timestep_starts, layout.timestep_ends))
    owned_KT = (starts <= t) & (t < ends)
    assert (owned_KT.sum(axis=0) == 1).all()
    chunk_of = owned_KT.argmax(axis=0).tolist()
    assert layout.timestep_to_chunk().tolist() == chunk_of == sorted(chunk_of)
    assert layout.visible_dims().tolist() == [[0, layout.ends[k]] for k in chunk_of]
    assert layout.own_dims().tolist() == [[layout.starts[k], layout.ends[k]] for k in chunk_of]
    masks = np.stack([layout.dim_mask([k]) for k in range(layout.chunks)])
    assert (masks.sum(axis=0) == 1).all()
    assert masks.sum(axis=1).tolist() == [b - a for a, b in pairwise((0, *layout.ends))]


@steady
@given(any_layouts())
def test_layouts_partition_timesteps_and_dims(layout):
    assert_partition(layout)
    assert ChunkLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@steady
@given(st.integers(1, 300), st.integers(1, 700), st.sampled_from([1000, 500, 2000]))
def test_recipes_give_a_partition_of_what_was_asked_or_say_why_not(chunks, latent_dim, timesteps):
    stage_ends = [end * timesteps // 1000 for end in (50, 100, 300, 500, 1000)]
    for make in (
        lambda: ChunkLayout.uniform(chunks=chunks, latent_dim=latent_dim, timesteps=timesteps),
        lambda: ChunkLayout.staged(chunks=chunks, latent_dim=latent_dim, stage_ends=stage_ends, timesteps=timesteps),
    ):
        try:
            layout = make()
        except ChunkError:
            assert chunks > latent_dim or 1 < chunks <= 20, "a chunk spans a stage of a twentieth of all timesteps"
            continue
        assert (layout.chunks, layout.latent_dim, layout.timesteps) == (chunks, latent_dim, timesteps)
        assert_partition(layout)


@steady
@given(any_layouts(), st.data())
def test_ranges_survive_being_described(layout, data):
    chosen = tuple(sorted(data.draw(st.sets(st.integers(0, layout.chunks - 1), min_size=1))))
    text = layout.describe(chosen).split(" ")[1]
    assert layout.parse(text) == chosen
    assert layout.parse(",".join(f" {k} - {k} " for k in reversed(chosen))) == chosen
    with pytest.raises(ChunkError):
        layout.parse(f"{text},{layout.chunks}")


# alphas

numbers = st.floats(-ALPHA_LIMIT, ALPHA_LIMIT).map(lambda value: round(value, 4) + 0.0)


@steady
@given(st.lists(numbers, min_size=1, max_size=MAX_ALPHAS))
def test_lists_of_alphas_come_back_in_order_without_repeats(values):
    assert parse_alphas(",".join(map(repr, values))) == tuple(dict.fromkeys(values))


@steady
@given(numbers, numbers, st.integers(1, MAX_ALPHAS))
def test_ranges_of_alphas_are_evenly_spaced_between_their_ends(start, stop, count):
    found = parse_alphas(f"{start!r}:{stop!r}:{count}")
    assert found[0] == start
    assert count == 1 or found[-1] == stop
    assert len(found) <= count
    gaps = np.diff(found)
    assert len(found) == 1 or np.ptp(gaps) <= 2e-4 + 1e-9 or len(found) < count
    assert parse_alphas(",".join(map(repr, found))) == found
    with pytest.raises(ConfigError):
        parse_alphas(f"{start!r}:{ALPHA_LIMIT + 1}:{count}")


# the order of images


@steady
@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 2**31), st.integers(0, 40))
def test_every_epoch_is_a_permutation_wherever_one_starts(images, batch_size, seed, start):
    whole = DataOrder(images, batch_size, seed)
    steps = [whole.batch(step) for step in range(start + 4)]
    stream = np.concatenate(steps)
    for epoch in range(len(stream) // images):
        assert sorted(stream[epoch * images : (epoch + 1) * images].tolist()) == list(range(images))
    resumed = DataOrder(images, batch_size, seed)
    for step in (start + 3, start):  # also backwards: nothing is remembered
        assert resumed.batch(step).tolist() == steps[step].tolist()


@steady
@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 5), st.integers(0, 20))
def test_ranks_share_the_global_batch(images, local, world, step):
    order = DataOrder(images, local * world, seed=3)
    parts = [order.batch(step)[Rank(index=rank, count=world).local_slice(local * world)] for rank in range(world)]
    assert {len(part) for part in parts} == {local}
    assert np.concatenate(parts).tolist() == order.batch(step).tolist()


@settings(steady, max_examples=20)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3), st.integers(0, 6))
def test_a_feed_goes_on_where_it_stopped_on_any_number_of_ranks(images, local, world, stop):
    pixels = np.arange(images, dtype=np.uint8).repeat(12).reshape(images, 2, 2, 3)
    order, cpu = DataOrder(images, local * world, seed=5), torch.device("cpu")

    def seen(first, last, ranks):
        size = order.batch_size
        feeds = [MemoryFeed(pixels).batches(order, first, last, Rank(index=r, count=ranks), cpu) for r in range(ranks)]
        return [torch.cat(parts)[:, 0, 0, 0].tolist() for parts in zip(*feeds, strict=True)], size

    everything, _ = seen(0, 7, 1)
    assert seen(0, stop, world)[0] + seen(stop, 7, 1)[0] == everything


# metadata of features

any_text = st.text(st.characters(), max_size=12)  # also halves of surrogate pairs, as undecodable file names are
metas = st.builds(
    FeatureMeta,
    files=st.lists(any_text, max_size=4).map(tuple),
    chunk_ends=st.sets(st.integers(1, 2**40), max_size=3).map(sorted).map(tuple),
    timestep_ends=st.sets(st.integers(1, 2**40), max_size=3).map(sorted).map(tuple),
    model=any_text,
    model_hash=any_text,
    preprocessing=st.dictionaries(any_text, any_text | st.integers() | st.booleans() | st.none(), max_size=3),
    skipped=st.lists(st.builds(Skipped, file=any_text, reason=any_text), max_size=3).map(tuple),
    created=any_text,
    version=any_text,
)


@steady
@given(metas)
def test_metadata_comes_back(meta):
    assert FeatureMeta.from_json(meta.to_json()) == meta
    assert FeatureMeta.from_json(meta.to_json().encode()) == meta


@settings(steady, max_examples=15)
@given(st.lists(any_text, min_size=1, max_size=4), st.sampled_from(sorted(CONVERTERS)))
def test_metadata_comes_back_from_within_a_file(folder, files, suffix):
    meta = FeatureMeta(files=tuple(files))
    path = folder / f"feats{suffix}"
    CONVERTERS[suffix](path, np.ones((len(files), 3), np.float32), files, meta.to_json())
    assert read_features(path).meta == meta


# names

words = st.text(string.ascii_letters + "-_. ", min_size=1, max_size=4)
lists = st.lists(words, min_size=2, max_size=4)
ranges = st.tuples(st.integers(0, 30), st.integers(0, 5), st.integers(1, 4))


@steady
@given(st.lists(words | lists | ranges, min_size=1, max_size=5))
def test_braces_stand_for_what_a_shell_makes_of_them(parts):
    """Against a product of choices, the last counting fastest."""
    text, choices = "/no/such/folder/", [["/no/such/folder/"]]
    for part in parts:
        if isinstance(part, str):
            text, options = text + part, [part]
        elif isinstance(part, list):
            text, options = f"{text}{{{','.join(part)}}}", part
        else:
            first, more, width = part
            options = [f"{n:0{max(width, len(str(first + more)))}d}" for n in range(first, first + more + 1)]
            text += f"{{{options[0]}..{options[-1]}}}"
        choices.append(options)
    assert expand_pattern(text) == [Path("".join(combination)) for combination in product(*choices)]


@steady
@given(st.sets(st.lists(st.sampled_from("abc"), min_size=2, max_size=5).map(tuple), min_size=1, max_size=8), st.data())
def test_distinct_files_get_distinct_names(files, data):
    """However their paths are cut into a root and a name."""
    cuts = [data.draw(st.integers(1, len(parts) - 1)) for parts in files]
    roots = [Path("/", *parts[:cut]) for parts, cut in zip(files, cuts, strict=True)]
    relative = ["/".join(parts[cut:]) for parts, cut in zip(files, cuts, strict=True)]
    found = unique_names(roots, relative)
    assert len(set(found)) == len(found)
    assert all(name.endswith(given) for name, given in zip(found, relative, strict=True))
    assert len(set(relative)) < len(relative) or found == relative
