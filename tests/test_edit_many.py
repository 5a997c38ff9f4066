import csv
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from readable_pipeline import A, B, ReadablePipeline, Recorder, picture

from diticli.editing.contact_sheet import edit_strip, pair_sheet
from diticli.editing.estimate import seconds_for
from diticli.editing.many import edit_many
from diticli.editing.many_files import ManyOptions, plan_pairs
from diticli.editing.pair import EditSettings, edit_pair
from diticli.editing.table import read_pairs
from diticli.errors import ConfigError, DataError

FAST = EditSettings(invert_steps=1, decode_steps=1)


@pytest.fixture
def table(tmp_path):
    """Five pairs of six images, beside a table."""
    for i in range(6):
        picture(10 * i, 200 - 20 * i).save(tmp_path / f"{i}.png")
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,name\n" + "".join(f"{i}.png,{i + 1}.png,pair{i}\n" for i in range(5)))
    return path


def run(rows, out, pipeline=None, reporter=None, **options):
    options = {"chunk_sets": [(0,), (1, 2)], "alphas": (0.0, 1.0), "settings": FAST, **options}
    pipeline = pipeline or ReadablePipeline()
    return edit_many(pipeline, rows, out, options=ManyOptions(**options), reporter=reporter)


# the table


def test_tables_of_all_kinds(tmp_path):
    (tmp_path / "t.csv").write_text('\ufeffa, b,alphas\nx.png,"sub/y z.png","0,1"\n\n')
    (tmp_path / "t.tsv").write_text("b\ta\tname\nfaces:2\tx.png\tmine\n")
    (tmp_path / "t.jsonl").write_text('{"a": "x.png", "b": "faces:1:9", "alphas": [0, 0.5]}\n\n')
    (row,) = read_pairs(tmp_path / "t.csv")
    assert (row.a, row.b) == (str(tmp_path / "x.png"), str(tmp_path / "sub" / "y z.png"))
    assert (row.alphas, row.chunks, row.name) == ("0,1", "", "1_x_y-z")
    (row,) = read_pairs(tmp_path / "t.tsv")
    assert (row.a, row.b, row.name) == (str(tmp_path / "x.png"), "faces:2", "mine")
    (row,) = read_pairs(tmp_path / "t.jsonl")
    assert (row.b, row.alphas) == ("faces:1:9", "0,0.5")


def test_tables_by_spreadsheets_and_pandas(tmp_path):
    """A semicolon, an index without a name, JSON, Parquet: by the rules that labels are read by."""
    x = str(tmp_path / "x.png")
    (tmp_path / "t.csv").write_text("sep=;\n;a;b;alphas\n0;x.png;faces:2;0,1\n")
    (tmp_path / "t.json").write_text('[{"a": "x.png", "b": "faces:2", "alphas": [0, 1]}]')
    pq.write_table(pa.table({"a": ["x.png"], "b": ["faces:2"], "alphas": ["0,1"]}), tmp_path / "t.parquet")
    for name in ("t.csv", "t.json", "t.parquet"):
        (row,) = read_pairs(tmp_path / name)
        assert (row.a, row.b, row.alphas) == (x, "faces:2", "0,1")
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="a spreadsheet's own format") as caught:
        read_pairs(tmp_path / "t.xlsx")
    assert "CSV" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", DataError, "is empty"),
        (",a,b\n0,x.png\n", ConfigError, "line 2"),
        ("x.png,y.png\n", ConfigError, "no column 'a'"),
        ("a,b,alpha\nx,y,1\n", ConfigError, "unknown column 'alpha'"),
        ("a,b\n", DataError, "no pairs"),
        ("a,b\nx.png\n", ConfigError, "line 2"),
        ("a,b\nx.png,y.png,1,2\n", ConfigError, "line 2"),
        ("a,b\nx.png,\n", ConfigError, "no image b"),
        ("a,b,name\nx,y,../z\n", ConfigError, "'../z'"),
        ("a,b,name\nx,y,/z\n", ConfigError, "'/z'"),
        ("a,b,name\nx,y,.z\n", ConfigError, "'.z'"),
        ("a,b,name\nx,y,z\nx,y,Z\n", ConfigError, "twice"),
    ],
)
def test_bad_tables_say_what_to_write(tmp_path, text, error, says):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(error, match=says) as caught:
        read_pairs(path)
    assert caught.value.remedy


def test_unreadable_tables(tmp_path):
    (tmp_path / "t.jsonl").write_text("[1]\n")
    (tmp_path / "u.jsonl").write_text("{\n")
    (tmp_path / "u.csv").write_bytes(b"a,b\n\xff\xfe,x\n")
    (tmp_path / "deep.jsonl").write_text('{"a":' * 100_000 + "\n")
    for name in ("t.jsonl", "u.jsonl", "deep.jsonl", "u.csv", "none.csv"):
        with pytest.raises(DataError) as caught:
            read_pairs(tmp_path / name)
        assert caught.value.remedy


# editing


def test_pictures_are_those_of_edit_pair(table, tmp_path):
    out = tmp_path / "out"
    report = run(read_pairs(table), out)
    assert report.written == tuple(f"pair{i}" for i in range(5))
    pictures = [Image.open(tmp_path / f"{i}.png") for i in (2, 3)]
    alone = edit_pair(
        ReadablePipeline(), *pictures, [(0,), (1, 2)], (0.0, 1.0), settings=FAST, names=("2.png", "3.png")
    )
    with Image.open(out / "pair2.png") as strip:
        assert np.array_equal(np.asarray(strip), np.asarray(edit_strip(pair_sheet(alone))))
        assert strip.info["diti:images"] == "2.png | 3.png"


def test_batches_are_full_across_pairs_and_images_are_inverted_once(table, tmp_path):
    pipeline, reporter = ReadablePipeline(), Recorder()
    settings = EditSettings(invert_steps=1, decode_steps=1, batch_size=8)
    run(read_pairs(table), tmp_path / "out", pipeline, reporter, settings=settings)
    assert pipeline.inverted == [6]
    assert pipeline.batches == [8, 8, 8, 6]  # five pairs of two reconstructions and four edits
    assert reporter.tasks == [["Editing", 40, 40]]


def test_windows_bound_the_images_in_memory(table, tmp_path):
    pipeline = ReadablePipeline()
    report = run(read_pairs(table), tmp_path / "out", pipeline, window=2)
    assert pipeline.inverted == [3, 3, 2]
    assert len(report.written) == 5


def test_what_diti_did_not_make_is_kept_and_listed(table, tmp_path):
    rows, out = read_pairs(table), tmp_path / "out"
    out.mkdir()
    (out / "pair2.png").write_bytes(b"mine")
    report = run(rows, out)
    assert [row.name for row, reason in report.failed if "diti did not make it" in reason] == ["pair2"]
    assert (out / "pair2.png").read_bytes() == b"mine"
    assert run(rows, out, overwrite=True).written == ("pair2",)


def test_finished_pairs_are_skipped_until_anything_changes(table, tmp_path):
    rows, out = read_pairs(table), tmp_path / "out"
    run(rows, out)
    (out / "pair1.png").unlink()
    whole = (out / "pair2.png").read_bytes()
    (out / "pair2.png").write_bytes(whole[: whole.index(b"tEXtSoftware") + 40])  # cut off, and known as our own
    picture(77, 77).save(tmp_path / "5.png")
    again = run(rows, out)
    assert again.written == ("pair1", "pair2", "pair4")
    assert again.skipped == ("pair0", "pair3")
    assert run(rows, out).written == ()
    assert run(rows, out, settings=EditSettings(invert_steps=1, decode_steps=1, batch_size=3)).written == ()
    assert len(run(rows, out, alphas=(1.0,)).written) == 5
    assert len(run(rows, out, alphas=(1.0,), difference=True).written) == 5


def test_the_precision_used_is_said_and_finished_pairs_are_still_known(table, tmp_path):
    rows, out, pipeline = read_pairs(table), tmp_path / "out", ReadablePipeline()
    pipeline.unet = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"))
    assert len(run(rows, out, pipeline).written) == 5
    with Image.open(out / "pair2.png") as strip:
        assert strip.info["diti:precision"] == "fp32"
    assert run(rows, out, pipeline).written == ()


def test_failures_are_listed_and_do_not_stop_the_rest(table, tmp_path):
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "4.png").unlink()
    table.write_text(table.read_text().replace("0.png", "faces:x") + "2.png,3.png,last\n")
    out, reporter = tmp_path / "out", Recorder()
    report = run(read_pairs(table), out, reporter=reporter)
    assert report.written == ("pair2", "last")
    assert [row.name for row, _ in report.failed] == ["pair0", "pair3", "pair4", "pair1"]
    assert any("pair1" in warning for warning in reporter.warnings)
    with (out / "failed.csv").open(newline="") as file:
        listed = {row["name"]: row for row in csv.DictReader(file)}
    assert "does not exist" in listed["pair3"]["error"]
    assert listed["pair1"]["a"] == str(tmp_path / "1.png")
    A.save(tmp_path / "1.png")
    B.save(tmp_path / "4.png")
    mended = [row for row in read_pairs(out / "failed.csv") if row.name != "pair0"]
    assert set(run(mended, out).written) == {"pair1", "pair3", "pair4"}
    assert not (out / "failed.csv").exists()


def test_rows_choose_chunks_and_alphas(table, tmp_path):
    table.write_text('a,b,chunks,alphas,name\n0.png,1.png,0-1;3,"0.5,1",x\n0.png,1.png,9,,y\n0.png,1.png,,7,z\n')
    rows = read_pairs(table)
    plan = plan_pairs(rows, tmp_path, ReadablePipeline.chunks, "hash", ManyOptions())
    assert {(edit.chunks, edit.alpha) for edit in plan.todo[0].edits} == {
        ((0, 1), 0.5),
        ((0, 1), 1.0),
        ((3,), 0.5),
        ((3,), 1.0),
    }
    assert {row.name: reason.split()[0] for row, reason in plan.failed} == {"y": "Chunk", "z": "The"}
    assert json.dumps(plan.to_dict())


def test_the_estimate_counts_what_is_run(table, tmp_path, monkeypatch):
    """A first decoding that takes ten times as long, a disturbed third, images that pairs share."""
    clock = iter([0.0, 10.0, 10.0, 11.0, 11.0, 14.0, 14.0, 15.0])
    monkeypatch.setattr("diticli.editing.estimate.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    options = ManyOptions(chunk_sets=[(0,)], alphas=(0.0, 1.0), settings=FAST)
    rows, pipeline = read_pairs(table), ReadablePipeline()
    plan = plan_pairs(rows, tmp_path / "out", pipeline.chunks, pipeline.model_hash, options)
    invert, decode = plan.pictures
    settings = EditSettings(invert_steps=4, decode_steps=3, batch_size=5)
    seconds = seconds_for(pipeline, plan, settings)
    assert seconds == pytest.approx((4 * invert + 3 * decode) / (2 * 5))
    del pipeline.batches[:]
    run(rows, tmp_path / "out", pipeline, chunk_sets=[(0,)])
    assert (invert, decode) == (sum(pipeline.inverted), sum(pipeline.batches))
    windowed = plan_pairs(rows, tmp_path / "other", pipeline.chunks, pipeline.model_hash, ManyOptions(window=2))
    assert windowed.pictures[0] == 3 + 3 + 2


def test_an_interruption_leaves_what_is_finished(table, tmp_path):
    class Interrupted(ReadablePipeline):
        def decode(self, x_T, z, **others):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().decode(x_T, z, **others)

    rows, out = read_pairs(table), tmp_path / "out"
    settings = EditSettings(invert_steps=1, decode_steps=1, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        run(rows, out, Interrupted(), settings=settings)
    assert sorted(path.name for path in out.iterdir()) == ["pair0.png", "pair1.png"]
    assert run(rows, out, settings=settings).skipped == ("pair0", "pair1")


def test_other_outputs_of_a_pair(table, tmp_path):
    out = tmp_path / "out"
    run(read_pairs(table)[:1], out, separate=tmp_path / "singles", animate=".gif", metadata={"diti:command": "c"})
    assert (out / "pair0.gif").is_file()
    with Image.open(tmp_path / "singles" / "pair0" / "a_chunks0_alpha1.00.png") as image:
        assert image.info["diti:command"] == "c"


def test_single_images_are_not_written_through_a_link(table, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "singles").mkdir()
    (tmp_path / "singles" / "pair0").symlink_to(tmp_path / "elsewhere")
    result = run(read_pairs(table)[:1], tmp_path / "out", separate=tmp_path / "singles")
    assert "singles/pair0 is a link" in str(result.failed)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_place_that_cannot_be_written(table, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        run(read_pairs(table), tmp_path / "file")
    assert caught.value.remedy
