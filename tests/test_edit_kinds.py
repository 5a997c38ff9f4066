import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from readable_pipeline import SIZE, A, B, ReadablePipeline, Recorder

from diticli.chunks import ChunkLayout
from diticli.editing.attribute import Move, edit_attribute
from diticli.editing.contact_sheet import amount_texts, attribute_sheet, edit_strip, reconstruction_sheet
from diticli.editing.engine import settled
from diticli.editing.inputs import image_stems, slug
from diticli.editing.quality import effect_warnings, overview_note, photo_warning, reconstruction_warnings
from diticli.editing.reconstruct import reconstruct
from diticli.editing.results import SIDES, Edit, EditResult
from diticli.editing.settings import EditSettings
from diticli.errors import ChunkError, ConfigError, LabelError
from diticli.probing.read_scores import ProbeScore

FAST = EditSettings(invert_steps=1, decode_steps=1)


class Brighter:
    """Moves the dims of the chunks (or all) up by `amount` of half the range; "learned" moves the last dim alone."""

    def move(self, z_BD, attribute, amount, *, dims=None, chunks=None, layout=None, along="weight"):
        amount = amount / 2 if along == "pattern" else amount
        if attribute != "bright":
            raise LabelError(f"no {attribute}")
        mask = torch.ones(SIZE) if chunks is None else torch.from_numpy(layout.dim_mask(chunks)).float()
        if dims == "learned":
            mask = mask * torch.eye(SIZE)[-1]
        return z_BD + amount * mask


def run(images=(A, B), attributes=("bright",), amounts=(-0.2, 0.0, 0.4), pipeline=None, settings=FAST, **others):
    pipeline = pipeline or ReadablePipeline()
    return edit_attribute(pipeline, images, Brighter(), attributes, amounts, settings=settings, **others)


def red(values):
    """Grey levels of features moved by half the range times `values`."""
    return np.asarray(values) * 127.5


def test_images_move_along_the_attribute_from_their_own_noise():
    result = run(along="weight")
    for image, original in enumerate((A, B)):
        base = np.asarray(original)[0, :, 0].astype(float)
        for amount in (-0.2, 0.0, 0.4):
            edit = result.edits[Move(image, "bright", None, amount)]
            np.testing.assert_allclose(edit[0, :, 0], np.clip(base + red(amount), 0, 255), atol=1)
            assert np.array_equal(edit[..., 1], np.asarray(original)[..., 1])
    assert result.psnr == (math.inf, math.inf)


def test_chunks_and_learned_dims_limit_the_move():
    result = run((A,), chunk_sets=[(1,), None], learned_dims=None)
    moved = result.edits[Move(0, "bright", (1,), 0.4)][0, :, 0].astype(int) - np.asarray(A)[0, :, 0]
    assert [value > 0 for value in moved] == [False, False, True, True, False, False, False, False]
    result = run((A,), learned_dims=1)
    moved = result.edits[Move(0, "bright", None, 0.4)][0, :, 0].astype(int) - np.asarray(A)[0, :, 0]
    assert np.flatnonzero(moved).tolist() == [SIZE - 1]
    assert result.to_metadata()["diti:dims"] == "1 learned"
    assert "1 learned dims" in attribute_sheet(result).title


def test_moves_go_along_weights_or_patterns():
    half = run((A,), along="pattern", amounts=(0.4,))
    assert np.array_equal(
        half.edits[Move(0, "bright", None, 0.4)],
        run((A,), along="weight", amounts=(0.2,)).edits[Move(0, "bright", None, 0.2)],
    )
    assert half.to_metadata()["diti:along"] == "pattern"


def test_all_edits_share_batches_and_nothing_is_decoded_twice():
    pipeline, reporter = ReadablePipeline(), Recorder()
    run(pipeline=pipeline, reporter=reporter)
    assert pipeline.batches == [2 + 2 * 2]
    assert [task[1:] for task in reporter.tasks] == [[1, 1], [1, 1]]
    run(pipeline=pipeline, settings=EditSettings(noise="mean", invert_steps=1, decode_steps=1))
    assert pipeline.batches[1:] == [2 + 2 * 3]


def test_attribute_mistakes_show_before_sampling():
    pipeline = ReadablePipeline()
    for arguments, error in (
        ({"attributes": ("dark",)}, LabelError),
        ({"images": ()}, ConfigError),
        ({"amounts": ()}, ConfigError),
        ({"chunk_sets": [(9,)]}, ChunkError),
        ({"settings": EditSettings(noise="slerp")}, ConfigError),
    ):
        with pytest.raises(error):
            run(pipeline=pipeline, **arguments)
    assert pipeline.inverted == []


def test_attribute_sheet():
    sheet = attribute_sheet(run(names=("a.png", "b.png"), chunk_sets=[(0,), None]))
    assert sheet.columns == ("original", "reconstruction", "−0.20", "0\n= reconstruction", "+0.40")
    assert [row.caption for row in sheet.rows] == [
        "a.png: bright, chunk 0 (t\xa00-249)",
        "a.png: bright",
        "b.png: bright, chunk 0 (t\xa00-249)",
        "b.png: bright",
    ]
    stems = [cell.stem for row in sheet.rows for cell in row.cells]
    assert len(set(stems)) == 2 * (2 + 2 * 3)
    assert {"a_bright_chunks0_-0.2", "b_bright_0"} <= set(stems)
    assert amount_texts([0.301, 0.302]) == ["+0.301", "+0.302"]


def test_scores_stand_beside_the_names_of_attributes():
    scores = {"bright": ProbeScore(0.744, 0.7, 0.8, 0.5, "average_precision")}
    sheet = attribute_sheet(run((A,), chunk_sets=[(0,), None]), scores)
    assert [row.caption for row in sheet.rows] == ["bright (AP 0.74), chunk 0 (t\xa00-249)", "bright (AP 0.74)"]
    assert attribute_sheet(run((A,)), {"other": scores["bright"]}).rows[0].caption == "bright"


def test_file_names_are_plain_and_distinct():
    assert slug("../a b/ü?.png") == "a-b-ü-.png"
    assert slug("...") == "x"
    assert image_stems(["x/a.png", "y/a.png", "faces:3"]) == ["a-0", "a-1", "faces-3"]


def test_reconstructions_by_kind_of_noise():
    pipeline = ReadablePipeline()
    result = reconstruct(pipeline, [A, B], settings=FAST, names=("a", "b"))
    assert list(result.pictures) == ["keep", "random", "mean"]
    assert pipeline.batches == [6]
    assert result.psnr["keep"] == (math.inf, math.inf)
    for noise in ("random", "mean"):
        assert all(value < 40 for value in result.psnr[noise])
        assert np.array_equal(result.pictures[noise][..., 0], result.originals[..., 0])
    assert (result.pictures["mean"][..., 1] == 128).all()
    assert np.array_equal(result.pictures["random"][0][..., 1], result.pictures["random"][1][..., 1])
    sheet = reconstruction_sheet(result)
    assert sheet.columns == ("original", "x_T inferred", "x_T random", "x_T mean (zeros)")
    assert [cell.caption for cell in sheet.rows[0].cells][:2] == ["", "exact"]
    assert edit_strip(sheet, difference=True).height > edit_strip(sheet).height


def model_of(usual=None, trained_on="", images=None, timesteps=1000, spread=None, rates=None):
    chunks = ChunkLayout.uniform(chunks=2, latent_dim=2, timesteps=timesteps)
    known = {"usual_psnr": usual, "usual_range": spread, "transfer_rates": rates or {}}
    return SimpleNamespace(chunks=chunks, trained_on=trained_on, trained_images=images, **known)


def test_bad_reconstructions_are_named_with_their_cause():
    few, enough, ddim = EditSettings(invert_steps=5), EditSettings(), EditSettings(solver="ddim", decode_steps=50)
    assert reconstruction_warnings({"a": 45.0, "b": math.inf}, few, model_of(54.0)) == []
    assert reconstruction_warnings({"a": 25.0}, few, model_of()) == []
    (bad,) = reconstruction_warnings({"a": 25.0, "b": 9.3}, few, model_of())
    assert "b: the reconstruction has 9.3 dB" in bad
    assert "--steps 20" in bad
    (far,) = reconstruction_warnings({"a": 36.0, "b": 38.0}, enough, model_of(54.0, "built-in faces", 200_000))
    assert "a (the worst of 2 such images)" in far
    assert "54.0 dB is usual" in far
    assert "such as built-in faces" in far
    assert "200,000" not in far, "that many are enough"
    (far,) = reconstruction_warnings({"a": 36.0}, enough, model_of(61.0, spread=(68.0, 71.4, 48)))
    assert "36.0 dB PSNR, where 68 to 71 dB are usual for this model (the worst of 48 images had 61.0 dB)" in far
    assert "--steps 100" in reconstruction_warnings({"a": 12.0}, ddim, model_of())[0]
    assert (
        "--steps" not in reconstruction_warnings({"a": 12.0}, EditSettings(invert_steps=9), model_of(timesteps=10))[0]
    )


def test_photographs_are_named_before_the_cartoon_model_gets_them(tmp_path):
    for name, size in (("anna.jpg", (8, 8)), ("wide.png", (9, 8)), ("drawn.png", (8, 8))):
        A.convert("RGB").resize(size).save(tmp_path / name)
    anna, wide, drawn = (str(tmp_path / name) for name in ("anna.jpg", "wide.png", "drawn.png"))
    shipped = model_of(trained_on="built-in faces")
    assert photo_warning([anna, "faces:3"], shipped).startswith("anna.jpg looks like a photograph")
    assert "2 images look like photographs" in photo_warning([anna, wide, drawn], shipped)
    assert "diti train --data" in photo_warning([anna], shipped)
    assert photo_warning([drawn, "faces:3"], shipped) == ""
    assert photo_warning([anna], model_of(trained_on="/photos")) == ""


def test_a_short_training_is_named_as_the_cause():
    """Its own images come back no better: nothing is wrong with these images, or with the steps."""
    (own,) = reconstruction_warnings({"a": 15.0}, EditSettings(), model_of(17.0, "built-in faces", 640))
    assert "gives its own images back no better (17.0 dB)" in own
    assert "trained on 640 images in stage 2: features of the built-in faces were usable from about 80,000 on" in own
    assert "only images like those" not in own
    (photos,) = reconstruction_warnings({"a": 15.0}, EditSettings(), model_of(None, "photos", 640))
    assert "such as photos" in photos
    assert "trained on 640 images in stage 2: for features of photographs 80,000 were too few" in photos


def test_chunks_without_effect_are_named():
    layout = ChunkLayout.uniform(chunks=4, latent_dim=8)
    grey = np.full((2, 4, 4, 3), 100, np.uint8)
    edits = {
        Edit(side, chunks, alpha): grey[0] + np.uint8(alpha * (20 if chunks == (1,) and side == "b" else 0))
        for side in SIDES
        for chunks in ((1,), (2, 3))
        for alpha in (0.0, 1.0)
    }
    result = EditResult(
        names=("A", "B"),
        originals=grey,
        reconstructions=grey,
        edits=edits,
        z=np.zeros((2, 8), np.float32),
        psnr=(math.inf, math.inf),
        layout=layout,
        model_hash="",
        settings=EditSettings(),
    )
    (warning,) = effect_warnings(result)
    assert "chunks 2-3 (t 500-999)" in warning
    assert overview_note(result).endswith(": chunks 2-3 (t 500-999).")
    assert "--grid" in warning


def test_a_strength_that_changes_nothing_is_shown_once():
    sheet = attribute_sheet(run((A,), amounts=(-0.2, 0.0, 0.4)))
    assert sheet.repeated == {1}
    assert sheet.rows[0].cells[3].against is not None
    moved = edit_strip(attribute_sheet(run((A,), amounts=(-0.2, 0.4))))
    assert edit_strip(sheet).width == moved.width
    mean = EditSettings(noise="mean", invert_steps=1, decode_steps=1)
    assert attribute_sheet(run((A,), settings=mean)).repeated == set()


def test_reconstruction_without_inversion():
    pipeline = ReadablePipeline()
    reconstruct(pipeline, [A], noises=["mean"], settings=FAST)
    assert pipeline.inverted == []
    with pytest.raises(ConfigError, match="swap"):
        reconstruct(pipeline, [A], noises=["swap"])
    with pytest.raises(ConfigError):
        reconstruct(pipeline, [])


def test_what_is_recorded_is_the_precision_that_was_used():
    """ "auto" says nothing to whoever wants the same picture elsewhere."""
    model = SimpleNamespace(unet=SimpleNamespace(dtype=torch.float32, device=torch.device("cpu")))
    used = settled(model, EditSettings())
    assert used.describe(1000)["diti:precision"] in ("fp32", "bf16")
    assert settled(model, EditSettings(precision="fp32")).precision == "fp32"
    model.unet.dtype = torch.bfloat16
    assert settled(model, EditSettings()).precision == "bf16"
    assert settled(ReadablePipeline(), EditSettings()) == EditSettings()
