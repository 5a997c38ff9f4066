import math
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from readable_pipeline import SIZE, A, B, ReadablePipeline, Recorder

from diticli.chunks import ChunkLayout
from diticli.editing import contact_sheet
from diticli.editing.contact_sheet import edit_strip, pair_sheet, write_animation, write_separate
from diticli.editing.engine import Job, decode_all
from diticli.editing.pair import Edit, EditSettings, Noise, edit_pair
from diticli.editing.stages import grouped, stages
from diticli.errors import ChunkError, ConfigError, DeviceError


def run(chunk_sets=((1,),), alphas=(0.0, 0.5, 1.0), pipeline=None, reporter=None, **settings):
    settings = {"invert_steps": 3, "decode_steps": 2, **settings}
    return edit_pair(
        pipeline or ReadablePipeline(),
        A,
        B,
        chunk_sets,
        alphas,
        settings=EditSettings(**settings),
        reporter=reporter,
    )


def test_only_the_chosen_chunks_change_and_only_by_alpha():
    result = run()
    a, b = np.arange(SIZE) * 10.0, np.arange(SIZE) * 10.0 + 100
    for side, own, other in (("a", a, b), ("b", b, a)):
        for alpha in (0.0, 0.5, 1.0):
            red = result.edits[Edit(side, (1,), alpha)][0, :, 0]
            expected = own.copy()
            expected[2:4] = (1 - alpha) * own[2:4] + alpha * other[2:4]
            np.testing.assert_allclose(red, expected, atol=1)
            untouched = [0, 1, 4, 5, 6, 7]
            assert np.array_equal(red[untouched], own[untouched])
    assert np.array_equal(result.originals[0], np.asarray(A))
    assert np.array_equal(result.reconstructions, result.originals)
    assert result.psnr == (math.inf, math.inf)
    assert result.z.dtype == np.float32
    assert result.z.shape == (2, SIZE)


@pytest.mark.parametrize(
    ("noise", "half", "full"),
    [("keep", 200, 200), ("swap", 40, 40), ("slerp", None, 40), ("random", None, None), ("mean", 128, 128)],
)
def test_noise_modes(noise, half, full):
    edits = run(noise=noise).edits
    for alpha, expected in ((0.5, half), (1.0, full)):
        green = edits[Edit("a", (1,), alpha)][..., 1]
        if expected is not None:
            assert np.array_equal(green, np.full_like(green, expected))
    if noise == "random":
        greens = [edit[..., 1] for edit in edits.values()]
        assert all(np.array_equal(green, greens[0]) for green in greens)
        assert not np.array_equal(greens[0], run(noise=noise, seed=1).edits[Edit("a", (1,), 1.0)][..., 1])
        assert np.array_equal(greens[0], run(noise=noise).edits[Edit("a", (1,), 1.0)][..., 1])


def test_batches_are_bounded_and_alpha_zero_costs_nothing():
    pipeline, reporter = ReadablePipeline(), Recorder()
    result = run(((0,), (1, 2, 3)), (0.0, 0.5, 1.0), pipeline, reporter, batch_size=4)
    assert pipeline.batches == [4, 4, 2]  # two reconstructions + 2 sets x 2 sides x 2 alphas
    assert len(result.edits) == 12
    assert pipeline.inverted_with == 3
    assert [task[1:] for task in reporter.tasks] == [[3, 3], [6, 6]]
    whole = ReadablePipeline()
    again = run(((0,), (1, 2, 3)), (0.0, 0.5, 1.0), whole, batch_size=64)
    assert whole.batches == [10]
    assert all(np.array_equal(again.edits[key], value) for key, value in result.edits.items())


def test_bad_requests():
    with pytest.raises(ChunkError, match="Chunk 4"):
        run(((4,),))
    with pytest.raises(ChunkError, match="at least one chunk"):
        run(((),))
    with pytest.raises(ConfigError):
        run(())
    with pytest.raises(ConfigError):
        run(alphas=())
    with pytest.raises(ConfigError, match="sideways"):
        EditSettings(noise="sideways")
    with pytest.raises(ConfigError, match="euler"):
        EditSettings(solver="euler")
    with pytest.raises(ConfigError, match="decode_steps"):
        EditSettings(decode_steps=0)
    assert get_args(Noise) == ("keep", "slerp", "swap", "random", "mean")


def test_official_sampling_clamps_both_ways_and_scales_the_shift_by_the_score():
    assert EditSettings.like_official() == EditSettings(
        noise="slerp", solver="ddim", invert_steps=1000, decode_steps=100, official=True
    )
    own, official = ReadablePipeline(), ReadablePipeline()
    run(pipeline=own)
    run(pipeline=official, official=True)
    assert own.samplers == [{"solver": "dpm"}] * 2
    assert official.samplers == [{"solver": "dpm", "clip": True, "shift_form": "score"}] * 2


def test_batches_follow_resolution_and_device():
    assert EditSettings().default_batch_size(32, "cpu") == 64
    assert EditSettings().default_batch_size(256, "cpu") == 4
    assert EditSettings().default_batch_size(128, "cuda") == 64
    assert EditSettings(batch_size=3).default_batch_size(128, "cuda") == 3


def test_sampling_is_compiled_where_it_pays_or_on_demand():
    assert EditSettings().should_compile("cuda", 2_000)
    assert not EditSettings().should_compile("cuda", 1_999)
    assert not EditSettings().should_compile("cpu", 10**9)
    assert EditSettings(compile=True).should_compile("cpu", 1)
    assert not EditSettings(compile=False).should_compile("cuda", 10**9)
    assert EditSettings(compile=True).sampler_kwargs()["compile"] is True
    assert "compile" not in EditSettings().sampler_kwargs()


def test_batches_that_do_not_fit_are_halved():
    class Small(ReadablePipeline):
        def decode(self, x_T, z, **others):
            if len(z) > limit:
                raise torch.OutOfMemoryError("too large")
            return super().decode(x_T, z, **others)

    pipeline, limit = Small(), 2
    jobs = [Job(i, torch.full((3, SIZE, SIZE), i / 10), torch.zeros(SIZE)) for i in range(7)]
    images = list(decode_all(pipeline.sampler(), jobs, EditSettings(), 7))
    assert max(pipeline.batches) <= 2
    assert [(label, round(float(image[1, 0, 0]) * 10)) for label, image in images] == [(i, i) for i in range(7)]
    limit = 0
    with pytest.raises(DeviceError, match="one image") as caught:
        list(decode_all(pipeline.sampler(), jobs, EditSettings(), 7))
    assert caught.value.remedy


def test_jobs_are_made_a_batch_at_a_time_and_no_mode_leaks():
    made = []

    def jobs():
        for i in range(6):
            made.append(i)
            yield Job(i, torch.zeros(3, SIZE, SIZE), torch.zeros(SIZE))

    decoded = decode_all(ReadablePipeline().sampler(), jobs(), EditSettings(), 2)
    next(decoded)
    assert made == [0, 1]
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (ChunkLayout.staged(chunks=64), [(0, 3), (4, 6), (7, 19), (20, 31), (32, 63)]),
        (ChunkLayout.staged(chunks=64, latent_dim=128), [(0, 3), (4, 6), (7, 19), (20, 31), (32, 63)]),
        (
            ChunkLayout.staged(chunks=10, stage_ends=(500, 1000), stage_dims=(12, 101)),
            [(0, 4), (5, 9)],
        ),
        (ChunkLayout.uniform(chunks=16, latent_dim=128), [(2 * i, 2 * i + 1) for i in range(8)]),
        (ChunkLayout.uniform(chunks=3, latent_dim=8), [(0, 0), (1, 1), (2, 2)]),
        (ChunkLayout.uniform(chunks=1, latent_dim=8), [(0, 0)]),
    ],
)
def test_stages_of_a_partition(layout, expected):
    found = stages(layout)
    assert [(chunks[0], chunks[-1]) for chunks in found] == expected
    assert [chunk for chunks in found for chunk in chunks] == list(range(layout.chunks))


def test_groups_cover_all_chunks():
    layout = ChunkLayout.uniform(chunks=10, latent_dim=10)
    assert [len(chunks) for chunks in grouped(layout, 4)] == [2, 3, 2, 3]


def test_strip_has_one_row_a_set_and_shows_the_inputs():
    result = run(((0,), (1, 2)), (0.5,))
    strip = edit_strip(pair_sheet(result))
    assert strip.mode == "RGB"
    one = edit_strip(pair_sheet(run(((0,),), (0.5,))))
    assert one.height + 96 < strip.height < one.height + 2 * 96
    assert strip.width > 6 * 96, "both directions side by side"
    colours = {colour for _, colour in strip.getcolors(1 << 20)}
    assert {tuple(result.originals[0][0, c]) for c in range(SIZE)} <= colours
    assert edit_strip(pair_sheet(result)).tobytes() == strip.tobytes()


def test_separate_files_hold_the_pictures_and_their_provenance(tmp_path):
    result = run(((0, 1), (3,)), (0.0, 0.5))
    paths = write_separate(pair_sheet(result), tmp_path / "new" / "folder")
    assert sorted(path.name for path in paths) == sorted(
        [
            "a_original.png",
            "a_reconstruction.png",
            "b_original.png",
            "b_reconstruction.png",
            *(f"{side}_chunks{c}_alpha{a}.png" for c in ("0-1", "3") for side in "ab" for a in ("0.00", "0.50")),
        ]
    )
    with Image.open(tmp_path / "new" / "folder" / "b_chunks3_alpha0.50.png") as image:
        assert np.array_equal(np.asarray(image), result.edits[Edit("b", (3,), 0.5)])
        assert image.info["diti:model"] == ReadablePipeline.model_hash
        assert image.info["diti:chunks"] == "chunks 0-1 (t 0-499) | chunk 3 (t 750-999)"
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths)


def test_many_scattered_chunks_still_make_a_file_name(tmp_path):
    pipeline = ReadablePipeline()
    pipeline.chunks = ChunkLayout.uniform(chunks=500, latent_dim=500)
    pipeline.encode = lambda images: images[:, 0].flatten(1).repeat(1, 8)[:, :500]
    pipeline.decode = lambda x_T, z, **others: x_T
    chunks = tuple(range(0, 500, 2))
    paths = write_separate(pair_sheet(run((chunks,), (1.0,), pipeline)), tmp_path)
    assert all(len(path.name) < 120 for path in paths)
    edit_strip(pair_sheet(run((chunks,), (1.0,), pipeline)))


def test_pairs_stand_side_by_side_in_every_strip(monkeypatch):
    """One grammar for one set of chunks, for several, and for --grid: A with B's left, B with A's right."""
    drawn = {}
    monkeypatch.setattr(contact_sheet, "captioned_strip", lambda rows, **texts: drawn.update(texts, rows=rows))
    result = run(((0,), (1, 2)), (0.5, 1.0))
    edit_strip(pair_sheet(result))
    halves = [[side, "reconstruction", "α 0.50", "α 1.00"] for side in "AB"]
    assert drawn["column_captions"] == halves[0] + halves[1]
    assert drawn["row_captions"] == ["chunk 0 (t\xa00-249)", "chunks 1-2 (t\xa0250-749)"]
    assert drawn["parts"] == {4}
    assert drawn["mark"] == {(row, column) for row in (0, 1) for column in (0, 4)}, "the originals are framed"
    assert np.array_equal(drawn["rows"][1][3], result.edits[Edit("a", (1, 2), 1.0)])
    assert np.array_equal(drawn["rows"][1][7], result.edits[Edit("b", (1, 2), 1.0)])
    edit_strip(pair_sheet(run(((1,),), (0.0, 1.0))))
    assert drawn["column_captions"] == [
        "A",
        "α 0.00\n= reconstruction",
        "α 1.00",
        "B",
        "α 0.00\n= reconstruction",
        "α 1.00",
    ]
    assert drawn["parts"] == {3}


def test_the_headline_says_what_was_done_and_alpha_zero_stands_once():
    result = run(((1, 2),), (0.0, 1.0))
    assert pair_sheet(result).title.startswith("A with B's chunks 1-2 (left), and B with A's (right).")
    assert pair_sheet(result).repeated == {1}
    assert pair_sheet(run(((1,),), (0.0, 1.0), noise="mean")).repeated == set()
    assert pair_sheet(result).title.endswith("Model: readable.")
    stems = [cell.stem for cell in pair_sheet(result).rows[0].cells]
    assert {"a_reconstruction", "a_chunks1-2_alpha0.00"} <= set(stems)


def test_difference_rows_show_only_what_changed():
    result = run(((1,),), (1.0,))
    sheet = pair_sheet(result)
    plain, compared = edit_strip(sheet, scale=4), edit_strip(sheet, scale=4, difference=True)
    assert compared.width >= plain.width
    assert compared.height > plain.height + 2 * 32
    assert len(compared.getcolors(1 << 20)) > len(plain.getcolors(1 << 20))


@pytest.mark.parametrize("name", ["out.webp", "new/out.gif"])
def test_animation_goes_forth_and_back(tmp_path, name):
    result = run(((0,), (1, 2)), (0.0, 0.5, 1.0))
    path = write_animation(pair_sheet(result), tmp_path / name, {"diti:command": "diti edit α"})
    with Image.open(path) as image:
        assert image.n_frames == 4
        assert image.info["loop"] == 0
        note = image.getexif()[0x010E] if path.suffix == ".webp" else image.info["comment"].decode()
    assert '"diti:model": "0123456789abcdef"' in note
    assert "diti edit \\u03b1" in note
