import math
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diticli.chunks import ChunkLayout
from diticli.errors import ConfigError, DataError
from diticli.pictures.animation import save_animation, with_slider
from diticli.pictures.captions import Caption, clean
from diticli.pictures.charts import bar_table_chart, loss_by_timestep_chart
from diticli.pictures.differences import difference_gain, difference_map
from diticli.pictures.grids import captioned_strip, image_grid, psnr, save_png, to_uint8


def tile(value, size=8):
    return np.full((size, size, 3), value, dtype=np.uint8)


def test_every_uint8_value_survives_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    back = to_uint8(values.float() / 127.5 - 1)
    assert back.shape == (1, 16, 16, 3)
    assert np.array_equal(back[0, :, :, 0], values[0, 0].numpy())


def test_psnr_is_of_what_a_viewer_sees():
    """Clamped, in 8 bits, over all pixels: floats of a model and bytes of a file give the same figure."""
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(grey, black) == pytest.approx(20 * math.log10(5))
    assert psnr(black, black) == math.inf
    x = torch.full((2, 3, 4, 4), 0.2)
    assert psnr(x, x + 2 / 255) == pytest.approx(20 * math.log10(255))
    assert psnr(x, x + 0.2 / 255) == math.inf  # less than half a grey level
    assert psnr(torch.full((3, 4, 4), 1.0), torch.full((3, 4, 4), 1.7)) == math.inf  # both are white
    assert psnr(x, to_uint8(x)) == math.inf
    halves = torch.stack([x[0], x[0] + 20 / 255])  # one picture equal, one off by 10 levels: pooled, not averaged
    assert psnr(halves, x) == pytest.approx(20 * math.log10(255 / 10) + 10 * math.log10(2))


def test_values_outside_the_range_are_clamped():
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, math.nan, math.inf]).view(1, 1, 1, 7).expand(1, 3, 1, 7)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 0, 255]
    assert to_uint8(images.bfloat16()).dtype == np.uint8


def test_grid_places_images_row_by_row():
    grid = image_grid([tile(v) for v in (10, 20, 30, 40, 50)], columns=2, scale=3, gap=1)
    assert grid.size == (2 * 24 + 1, 3 * 24 + 2)
    assert [grid.getpixel(at)[0] for at in ((0, 0), (48, 0), (0, 26), (30, 26), (0, 60))] == [
        10,
        20,
        30,
        40,
        50,
    ]
    assert grid.getpixel((40, 60)) == (255, 255, 255)


def test_grid_takes_batches_and_makes_small_images_legible():
    batch = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    grid = image_grid(batch)
    assert grid.size == (2 * 96 + 2, 2 * 96 + 2)
    assert image_grid(to_uint8(batch)).tobytes() == grid.tobytes()
    assert image_grid([tile(0, 200)]).size == (200, 200)


@pytest.mark.parametrize(
    "images", [[], [tile(0), tile(0, 9)], [np.zeros((8, 8, 3))], [torch.zeros(3, 8, 8, dtype=torch.uint8)]]
)
def test_grid_refuses_what_it_cannot_draw(images):
    with pytest.raises(ValueError, match=r"[Ii]mage"):
        image_grid(images)


def test_strip_keeps_pixels_and_leaves_empty_cells_white():
    strip = captioned_strip([[tile(7), None]], row_captions=[""], column_captions=["", ""])
    pixels = np.asarray(strip)
    assert (pixels == 7).all(axis=-1).sum() == 96 * 96
    assert (pixels == 255).all(axis=-1).sum() == pixels.shape[0] * pixels.shape[1] - 96 * 96


def test_strip_frames_marked_cells_outside_their_pixels():
    arguments = {"row_captions": [""], "column_captions": ["", ""]}
    plain = np.asarray(captioned_strip([[tile(7), tile(9)]], **arguments))
    marked = np.asarray(captioned_strip([[tile(7), tile(9)]], mark={(0, 1)}, **arguments))
    changed = (plain != marked).any(axis=-1)
    assert changed.sum() == 100 * 100 - 96 * 96
    assert not changed[(plain == 7).all(axis=-1) | (plain == 9).all(axis=-1)].any()


@pytest.mark.parametrize("columns", [1, 20])
def test_captions_never_touch_tiles_or_the_border(columns):
    long = "a caption that is far longer than its tile, with averyveryverylongwordwithoutanyspace"
    strip = captioned_strip(
        [[tile(0)] * columns] * 2,
        row_captions=[long * 3, "B + A's chunks 0-3,8 (t 0-327)"],
        column_captions=[long] * columns,
        title=long,
    )
    pixels = np.asarray(strip).astype(int)
    border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3)])
    assert (border == 255).all()
    black = (pixels == 0).all(axis=-1)
    assert black.sum() == 2 * columns * 96 * 96  # the tiles are whole, and no ink (which is not black) lies on them


def test_strip_refuses_captions_that_do_not_fit():
    with pytest.raises(ValueError, match="caption"):
        captioned_strip([[tile(0)]], row_captions=["a", "b"], column_captions=[""])
    with pytest.raises(ValueError, match="column"):
        captioned_strip([[tile(0)]], row_captions=["a"], column_captions=["", ""])


@pytest.mark.parametrize("width", [20, 96, 168, 1000])
@pytest.mark.parametrize("text", ["", "α 0.25", "x" * 300, "0,2,4,6,8,10 (t 0-1,3-4) " * 9, "a\nb\tc", "日本 é"])
def test_captions_wrap_within_their_width_and_lose_nothing(text, width):
    caption = Caption(text, width)
    assert caption.width <= width
    assert "".join("".join(caption.lines).split()) == "".join(text.split())
    canvas = Image.new("L", (width + 40, caption.height + 40), 255)
    caption.draw(ImageDraw.Draw(canvas), 20, 20)
    left, top, right, bottom = canvas.point(lambda v: 255 - v).getbbox() or (20, 20, 20, 20)
    assert left >= 19
    assert top >= 20
    assert right <= 21 + width
    assert bottom <= 20 + caption.height


def test_clean_makes_any_file_name_drawable():
    assert clean(os.fsdecode(b"bad\xff.png")) == "bad?.png"
    assert clean("a\x1b[31m\x00b") == "a?[31m?b"
    assert clean("α\nβ") == "α\nβ"


def test_png_carries_text_and_leaves_nothing_beside_it(tmp_path):
    path = save_png(tile(5), tmp_path / "new" / "x.png", {"diti:alphas": "α 0.5", "diti:images": "a\udcff | b"})
    with Image.open(path) as image:
        assert image.info["diti:alphas"] == "α 0.5"
        assert image.info["diti:images"] == "a? | b"
        assert np.array_equal(np.asarray(image), tile(5))
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_png_that_cannot_be_written_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError) as caught:
        save_png(tile(5), tmp_path / "file" / "x.png")
    assert "x.png" in str(caught.value)
    assert caught.value.remedy
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError):
        save_png(tile(5), tmp_path / "folder.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_charts_are_pngs_that_show_something(tmp_path):
    loss = np.exp(-np.arange(20) / 4)
    loss[3] = math.nan
    layout = ChunkLayout.uniform(chunks=16, latent_dim=32)
    alone = loss_by_timestep_chart(tmp_path / "a.png", loss)
    both = loss_by_timestep_chart(tmp_path / "b.png", loss, base_loss=loss * 1.2, layout=layout)
    pictures = []
    for path in (alone, both):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size == (936, 468)
            pictures.append(np.asarray(image))
    assert len(np.unique(pictures[1].reshape(-1, 3), axis=0)) > len(np.unique(pictures[0].reshape(-1, 3), axis=0))


def test_charts_obey_no_settings_of_the_working_folder(tmp_path):
    """matplotlib reads ./matplotlibrc when it is imported; a chart must not look different beside one."""
    import matplotlib

    def chart(name):
        return loss_by_timestep_chart(tmp_path / name, [1.0, 2.0, 3.0], title="$a_1$ and 5 $")

    alone = chart("a.png").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "lines.linewidth": 9}):
        assert chart("b.png").read_bytes() == alone
        assert matplotlib.rcParams["font.size"] == 30


def test_charts_survive_losses_of_nothing(tmp_path):
    loss_by_timestep_chart(tmp_path / "a.png", [math.nan] * 10)


def test_bars_grow_with_the_table(tmp_path):
    names = ["hue", r"a name with $\bad$ and _"]
    few = bar_table_chart(tmp_path / "a.png", names, {"trained": [0.9, math.nan], "pixels": [-0.2, 0.3]}, title="t")
    many = bar_table_chart(tmp_path / "b.png", names * 20, {"trained": [0.5] * 40}, title="t")
    with Image.open(few) as small, Image.open(many) as large:
        assert large.height > small.height > 100
    with pytest.raises(ValueError, match="every name"):
        bar_table_chart(tmp_path / "c.png", names, {"trained": [0.5]}, title="t")
    with pytest.raises(ValueError, match="every name"):
        bar_table_chart(tmp_path / "c.png", [], {}, title="t")


def test_empty_captions_take_no_room():
    tile = np.zeros((96, 96, 3), np.uint8)
    plain = captioned_strip([[tile]], row_captions=[""], column_captions=[""])
    assert plain.size == (96 + 2 * 12, 96 + 2 * 12)


def test_cells_have_captions_below_and_groups_stand_apart():
    cells = [[tile(7), tile(9)], [tile(7), None]]
    arguments = {"row_captions": ["", ""], "column_captions": ["", ""]}
    plain = captioned_strip(cells, **arguments)
    apart = captioned_strip(cells, **arguments, groups={0, 1})
    below = captioned_strip(cells, **arguments, cell_captions=[["41.2 dB", ""], ["", "exact"]])
    assert apart.height == plain.height + 12
    assert below.height > plain.height + 2 * 10
    for strip in (apart, below):
        pixels = np.asarray(strip)
        assert (pixels == 7).all(axis=-1).sum() == 2 * 96 * 96  # whole, and no ink on them
        assert (pixels == 9).all(axis=-1).sum() == 96 * 96
    with pytest.raises(ValueError, match="caption"):
        captioned_strip(cells, **arguments, cell_captions=[["", ""]])


def test_difference_maps_are_paper_where_nothing_changed_and_show_small_changes():
    image = tile(100)
    image[0, 0], image[0, 1] = 110, 101
    shown = difference_map(image, tile(100), 16).astype(int)
    assert (shown[1:] > 235).all()
    assert shown[0, 0].sum() < 400
    assert shown[1, 0].sum() - shown[0, 1].sum() > 60, "a sixteenth of the scale is a quarter of the colours"
    assert np.array_equal(difference_map(image, tile(100), 32)[0, 0], difference_map(tile(255), tile(0), 1)[0, 0])


@pytest.mark.parametrize(("step", "gain"), [(0, 32), (5, 32), (20, 8), (100, 2), (255, 1)])
def test_gain_is_what_the_largest_differences_allow(step, gain):
    assert difference_gain([(tile(step), tile(0)), (tile(0), tile(0))]) == gain
    assert difference_gain([]) == 32


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animations_rest_at_both_ends_and_carry_text(tmp_path, suffix):
    frames = [with_slider(Image.new("RGB", (40, 30), (60 * i, 0, 0)), f"α {i}", i / 3) for i in range(4)]
    path = save_animation(frames, tmp_path / "new" / f"x{suffix}", {"diti:images": "ü"})
    with Image.open(path) as image:
        assert image.n_frames == 6
        assert image.size == frames[0].size
        durations = []
        for i in range(6):
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
        assert durations[0] == durations[3] == 900
        assert len(set(durations) - {900}) == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    one = save_animation(frames[:1], tmp_path / f"one{suffix}")
    assert one.is_file()


def test_webp_keeps_every_pixel(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    path = save_animation([noise, Image.new("RGB", (30, 20))], tmp_path / "x.webp")
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(noise))


def test_other_animations_are_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        save_animation([Image.new("RGB", (4, 4))], tmp_path / "x.mp4")
    assert caught.value.remedy
    (tmp_path / "x.gif").mkdir()
    with pytest.raises(DataError):
        save_animation([Image.new("RGB", (4, 4))], tmp_path / "x.gif")
