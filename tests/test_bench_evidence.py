"""Where chunks act: the arithmetic of the evidence table."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.evidence_judges import FITTED, chunk_scores
from benchmarks.evidence_table import COLUMNS, perfect, table, when
from benchmarks.experiments.gain_peaks import ends, peaks
from diticli.chunks import ChunkLayout
from diticli.data.faces import FACTORS

QUARTERS = [[0, 250], [250, 500], [500, 750], [750, 1000]]


def atlas(**shares):
    return {
        "timesteps": QUARTERS[: len(next(iter(shares.values())))],
        "shares": {name: [{"value": value} for value in values] for name, values in shares.items()},
    }


def test_effects_are_placed_by_the_share_that_they_carry():
    """hue: 0.3 at 125 and 0.1 at 625; hat: 0.4 at 375, and what moves it back does not count."""
    found = when(atlas(hue=[0.3, 0, 0.1, 0], hat=[0, 0.4, 0, -0.2]), {"hue": 625, "hat": 300})
    assert found["first_quarter"] == pytest.approx(0.3 / 0.8)
    assert found["mean_t"] == pytest.approx((0.3 * 125 + 0.1 * 625 + 0.4 * 375) / 0.8)
    assert found["off_by"] == pytest.approx((0.3 * 500 + 0.1 * 0 + 0.4 * 75) / 0.8)
    # Of all effects 0.3 / 0.8 lie at 125, 0.4 / 0.8 at 375 and 0.1 / 0.8 at 625, and each factor has half of them.
    alike = [(3 * 500 + 4 * 250 + 1 * 0) / 8, (3 * 175 + 4 * 75 + 1 * 325) / 8]
    assert found["off_by_alike"] == pytest.approx(sum(alike) / 2)


def test_factors_that_are_never_lost_are_off_by_nothing():
    found = when(atlas(hue=[0, 1, 0, 0], ghost=[9, 0, 0, 0]), {"hue": 475})
    assert found["off_by"] == 100
    assert found["mean_t"] == pytest.approx((375 + 9 * 125) / 10)


@pytest.mark.parametrize("shares", [[0.5], [0, 0, -0.1, 0]])
def test_a_single_chunk_or_one_that_moves_nothing_has_no_place(shares):
    assert set(when(atlas(hue=shares), {"hue": 475}).values()) == {None}


def test_no_setting_surpasses_factors_that_act_in_their_time():
    """Two factors of four are lost in one quarter: its chunk moves both, one of the others' chunks a single one."""
    lost = {"hue": 600, "light": 700, "hat": 300, "smile": 100}
    found = perfect(lost, [{"atlas": atlas(hue=[1])}, {"atlas": atlas(hue=[0, 0, 1, 0])}])
    assert found["concentration"] == 1
    assert found["selectivity"] == pytest.approx((2 * 1 + 2 * 0.5) / 4)
    assert found["off_by"] == pytest.approx((25 + 75 + 75 + 25) / 4)
    assert found["first_quarter"] == 0.25
    assert table([found]).splitlines()[-1].startswith("| each factor in its time | 1 |")


def test_the_table_tells_means_and_half_ranges():
    row = dict.fromkeys(COLUMNS, 0.25) | {"order": None}
    text = table([{**row, "arm": "a"}, {**row, "arm": "b", "mean_t": 200.0}, {**row, "arm": "b", "mean_t": 300.0}])
    head, _, a, b = text.splitlines()
    place = head.split(" | ").index("mean t")
    assert a.split(" | ")[place] == "0"
    assert b.split(" | ")[place] == "250 ± 50"
    assert a.startswith("| a | 1 | 0.250 | 0.250 | 0.25 |")
    assert a.split(" | ")[head.split(" | ").index("order")] == ""
    # A seed without a score, since no chunk of it moves anything, leaves the other's.
    nothing = table([{**row, "arm": "c", "concentration": None}, {**row, "arm": "c"}]).splitlines()[-1]
    assert nothing.split(" | ")[head.split(" | ").index("concentration")] == "0.25"


def test_a_factor_is_worth_most_before_it_is_lost_where_errors_fall_and_at_the_start_where_they_do_not():
    snr_T = np.exp(np.linspace(5, -5, 101))
    lost = {"coarse": 70.0, "fine": 30.0}
    assert set(peaks(lost, snr_T, np.ones(101)).values()) == {0}
    # Where errors fall as the square root of the ratio, sqrt(r) / (1 + r) is greatest at r = 1, where it is lost.
    assert peaks(lost, snr_T, np.sqrt(snr_T)) == {"coarse": 70, "fine": 30}


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_price_in_degrees_of_freedom_leaves_all_factors_one_precision_whatever_the_error(slope):
    """r / (1 + r + p)^2 is greatest at r = 1 + p: 1 / (4 (1 + p)), half the bottleneck b where 1 + p = 1 / (2 b)."""
    log_snr_T = np.linspace(8, -5, 1301)
    lost = {"coarse": 1000.0, "fine": 700.0}
    found = ends(lost, np.exp(log_snr_T), np.exp(slope * log_snr_T), bottleneck=0.05, chunks=1301)
    for name, t in lost.items():
        place, precision = found[name]
        assert 1 + precision == pytest.approx(10, rel=0.02)
        assert log_snr_T[int(place)] == pytest.approx(log_snr_T[int(t)] + np.log(10), abs=0.03)


def test_nothing_is_told_where_nothing_pays():
    snr_T = np.exp(np.linspace(5, -5, 101))
    assert ends({"hue": 50.0}, snr_T, np.ones(101), bottleneck=0.51, chunks=4)["hue"][1] == 0


def test_a_factor_is_told_in_the_chunks_that_alone_reach_half_of_what_all_tell():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(FITTED + 1000, len(FACTORS))).astype(np.float32)
    noise = rng.normal(size=(len(factors), 8)).astype(np.float32)
    # Chunk 0: factors 0 and 1; chunk 1: factor 1 again; chunk 2: factor 2 through noise, which tells a third of it.
    z = np.stack(
        [factors[:, 0], factors[:, 1], factors[:, 1], noise[:, 0], factors[:, 2] + 1.4 * noise[:, 1], noise[:, 2]], 1
    )
    found = chunk_scores(z, factors, ChunkLayout(timestep_ends=(10, 20, 30), ends=(2, 4, 6)))
    assert found["told_in"] == (1 + 2) / 2
    rows = list(found["told_by_chunk"].values())
    assert rows[0] == pytest.approx([1, 0, 0], abs=0.01)
    assert rows[1] == pytest.approx([1, 1, 0], abs=0.01)
    assert rows[2] == pytest.approx([0, 0, 1 / (1 + 1.4**2)], abs=0.06)
    assert np.max(rows[3:]) < 0.02


def test_the_picture_puts_the_factor_on_top_that_noise_hides_first(tmp_path, monkeypatch):
    from benchmarks import evidence_picture

    drawn = {}
    monkeypatch.setattr(
        evidence_picture, "chunk_heatmap", lambda path, values, **more: drawn.update(path=path, values=values, **more)
    )
    found = atlas(hue=[0, 0, 0.5, 0], ghost=[0.1, 0, 0, 0], smile=[0.2, 0, 0, 0])
    found["together"] = {"hue": {"value": 0.6}, "ghost": {"value": 0.2}, "smile": {"value": 0.3}}
    layout = ChunkLayout.uniform(chunks=4, latent_dim=8)
    row = {"arm": "plain", "images": 25_600, "atlas": found, "layout": layout.to_dict()}
    evidence_picture.atlas_picture(tmp_path / "atlas.png", row, {"hue": 617.0, "smile": 112.0})
    assert drawn["rows"] == ["smile", "hue", "ghost"]
    assert drawn["values"].tolist() == [[0.2, 0, 0, 0], [0, 0, 0.5, 0], [0.1, 0, 0, 0]]
    assert drawn["totals"] == [0.3, 0.6, 0.2]
    assert drawn["marks"] == [(112.0,) * 3, (617.0,) * 3, None]
    assert drawn["layout"] == layout
