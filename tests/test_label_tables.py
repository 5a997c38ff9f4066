"""Every image gets its own label: which column names the images, what cells mean, and what is refused instead."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diticli.data.label_columns import make_column
from diticli.data.labels import LabelColumn, LabelTable, read_groups, read_labels, read_parts
from diticli.data.name_match import match_names
from diticli.errors import LabelError
from diticli.probing.label_join import identity_hint, join_labels

IMAGES = [f"{i:06d}.png" for i in range(1, 41)]  # CelebA counts from 1
TRUTH = [(7 * i) % 5 for i in range(40)]


def write(tmp_path, text, name="labels.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(header, *columns, delimiter=","):
    return "\n".join(delimiter.join(map(str, row)) for row in [header, *zip(*columns, strict=True)])


def joined(path, images=IMAGES):
    return join_labels(images, read_labels(path, images))


# which column names the images


@pytest.mark.parametrize(
    ("header", "columns", "named"),
    [
        (["image_id", "v"], [IMAGES, TRUTH], "image_id"),
        (["", "image_id", "v"], [range(40), IMAGES, TRUTH], "image_id"),
        (["Unnamed: 0", "photo", "v"], [range(40), IMAGES, TRUTH], "photo"),
        (["id", "filename", "v"], [range(40), IMAGES, TRUTH], "filename"),
        (["id", "File Name", "v"], [range(1, 41), IMAGES, TRUTH], "File Name"),
        (["v", "what", "anything"], [TRUTH, ["x"] * 40, IMAGES], "anything"),
        (["", "v"], [IMAGES, TRUTH], "(without a name)"),
        (["n", "image", "v"], [range(40), [name[:-4] for name in IMAGES], TRUTH], "image"),
        (["id", "nr", "path", "v"], [range(40), range(40), [f"x\\{n[:-4]}.JPG" for n in IMAGES], TRUTH], "path"),
        (["mask", "file_name", "v"], [[f"m/{n}" for n in reversed(IMAGES)], IMAGES, TRUTH], "file_name"),
        (["file_name", "aligned", "v"], [[f"raw{i}.jpg" for i in range(40)], IMAGES, TRUTH], "aligned"),
        (["partner", "image", "v"], [[IMAGES[i // 2] for i in range(40)], IMAGES, TRUTH], "image"),
    ],
    ids=str,
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_images_get_their_own_labels_by_name(tmp_path, header, columns, named, delimiter):
    found = joined(write(tmp_path, rows(header, *columns, delimiter=delimiter)))
    assert found.rows.tolist() == list(range(40))
    assert found.columns["v"].values.tolist() == TRUTH
    assert found.by_number == 0
    assert f"by the column {named!r}" in found.describe()
    assert not {"id", "n", "Unnamed: 0", "mask"} & set(found.columns)


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        (["", "v"], [range(40), TRUTH], "the first one only counts rows"),
        (["left", "right", "v"], [IMAGES, IMAGES[::-1], TRUTH], "more than one column may name the images"),
        (["file_name", "aligned", "v"], [[*IMAGES[:3], *map(str, range(37))], IMAGES, TRUTH], "more than one column"),
        (["id", "v"], [range(40), TRUTH], "may count the rows"),
        (["image_id", "v"], [range(40), TRUTH], "may count the rows"),
        (["id", "v"], [range(60), [0] * 60], "may count the rows"),
        (["image_id", "v"], [[f"a{i}" for i in range(40)], TRUTH], "None of the labels belong to these images"),
    ],
    ids=str,
)
def test_a_table_in_doubt_is_refused(tmp_path, header, columns, message):
    with pytest.raises(LabelError, match=message) as caught:
        joined(write(tmp_path, rows(header, *columns)))
    assert caught.value.remedy


def test_without_images_two_equal_claims_are_refused_too(tmp_path):
    path = write(tmp_path, rows(["left", "right", "v"], IMAGES, IMAGES[::-1], TRUTH))
    with pytest.raises(LabelError, match="'left', 'right'"):
        read_labels(path)


def test_numbers_alone_are_taken_where_they_are_plain_and_said(tmp_path):
    found = joined(write(tmp_path, rows(["id", "v"], range(1, 41), TRUTH)))
    assert found.columns["v"].values.tolist() == TRUTH
    assert "40 of them by number alone ('1' is '000001.png')" in found.describe()
    shuffled = [20, *range(1, 20), *range(21, 41)]
    values = [TRUTH[i - 1] for i in shuffled]
    assert joined(write(tmp_path, rows(["id", "v"], shuffled, values))).columns["v"].values.tolist() == TRUTH
    some = joined(write(tmp_path, rows(["image_id", "v"], range(1, 41), TRUTH)), IMAGES[10:20])
    assert some.columns["v"].values.tolist() == TRUTH[10:20]


def test_mixed_suffixes_all_match():
    match = match_names(["1.png", "2.png", "a/3.png"], ["1.jpg", "2.png", "a/3.jpeg"])
    assert (match.rows.tolist(), match.table_rows.tolist()) == ([0, 1, 2], [0, 1, 2])
    assert match.by_name == 3
    # Two rows that differ in the suffix only belong to neither, the others still match.
    match = match_names(["1.png", "2.png", "3.png"], ["1.jpg", "1.jpeg", "2.png", "3.jpg"])
    assert (match.rows.tolist(), match.table_rows.tolist()) == ([1, 2], [2, 3])


def test_folders_are_not_dropped_for_the_rest_once_whole_names_match():
    match = match_names(["cat/1.png", "dog/2.png"], ["cat/1.png", "bird/2.png"])
    assert (match.rows.tolist(), match.table_rows.tolist()) == ([0], [0])


# what cells mean


@pytest.mark.parametrize("mark", ["?", "-", "--", "NA", "N/A", "#N/A", "<NA>", "unknown", "nan", "None", ""])
def test_marks_of_unknown_are_no_class(mark):
    hat = make_column("hat", ["1", "0", mark, "1"], range(4))
    assert hat.kind == "binary"
    np.testing.assert_array_equal(hat.values, [1, 0, np.nan, 1])
    hue = make_column("hue", ["0.5", mark, "0.25"], range(3))
    assert (hue.kind, hue.note) == ("number", "")
    np.testing.assert_array_equal(hue.values, np.array([0.5, np.nan, 0.25], np.float32))
    if mark not in ("None", "NA"):  # which may be a category's name
        assert make_column("mood", ["ok", mark, "bad"], range(3)).values.tolist() == ["ok", "", "bad"]


@pytest.mark.parametrize(
    ("cells", "values", "note"),
    [
        (["0,5", "1", "-2,25", "?"], [0.5, 1, -2.25, np.nan], "comma is the decimal point"),
        (["0,123", "0,456"], [0.123, 0.456], "comma is the decimal point"),
        (["12.5%", "50 %", "-"], [0.125, 0.5, np.nan], "'12.5%' as 0.125"),
        (["12,5%", "100%"], [0.125, 1], "'12,5%' as 0.125"),
    ],
)
def test_numbers_by_spreadsheets(cells, values, note):
    column = make_column("hue", cells, range(len(cells)))
    assert column.kind == "number"
    np.testing.assert_allclose(column.values, np.array(values, np.float32))
    assert column.note.startswith("hue: ")
    assert note in column.note


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (["1.5", "2", "3", "0,5"], "3 numbers and 1 cells like '0,5' (line 7)"),
        (["0.5", "1.5", "tall", "?"], "2 numbers and 1 cells like 'tall' (line 6)"),
        (["1,234", "2,345"], "which may be a decimal comma or thousands"),
        (["5", "12%", "7"], "2 numbers and 1 cells like '12%' (line 5)"),
    ],
)
def test_what_keeps_a_column_from_being_numbers_is_named(cells, note):
    column = make_column("hue", cells, range(4, 4 + len(cells)))
    assert column.kind == "category"
    assert note in column.note


def test_plain_categories_need_no_explanation():
    assert make_column("mood", ["ok", "bad", "1"], range(3)).note == ""


def test_numbers_of_persons_are_no_amounts(tmp_path):
    table = read_labels(write(tmp_path, "000001.jpg 2880\n000002.jpg 17\n", "identity_CelebA.txt"))
    assert table.files == ("000001.jpg", "000002.jpg")
    assert table.columns["identity"].kind == "category"
    assert table.columns["identity"].values.tolist() == ["2880", "17"]
    assert any("no header" in note for note in table.notes)
    table = read_labels(write(tmp_path, "image_id,person,age\na.png,7,31\nb.png,8,40\n"))
    assert (table.columns["person"].kind, table.columns["age"].kind) == ("category", "number")
    ages = read_labels(write(tmp_path, "a.png 31\nb.png 40.5\n", "ages.txt"))
    assert ages.columns["ages"].values.tolist() == [31, 40.5]


# formats


def test_json_parquet_and_excels_first_line_are_tables_like_any_other(tmp_path):
    named = enumerate(zip(IMAGES, TRUTH, strict=True))
    records = [{"id": i, "file_name": name, "v": v, "box": [1, 2]} for i, (name, v) in named]
    write(tmp_path, json.dumps(records), "t.json")
    write(tmp_path, "\n".join(map(json.dumps, records)), "t.ndjson")
    columns = {"__index_level_0__": list(range(40)), "file_name": IMAGES, "v": TRUTH, "box": [[1]] * 40}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    write(tmp_path, "sep=;\n" + rows(["", "file_name", "v"], range(40), IMAGES, TRUTH, delimiter=";"), "t.csv")
    for name in ("t.json", "t.ndjson", "t.parquet", "t.csv"):
        found = joined(tmp_path / name)
        assert {key: column.values.tolist() for key, column in found.columns.items()} == {"v": TRUTH}, name
        assert read_groups(tmp_path / name, IMAGES) == dict(zip(IMAGES, map(str, TRUTH), strict=True)), name


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l.xlsx", b"PK\x03\x04", "a spreadsheet's own format"),
        ("l.png", b"\x89PNG", "is a picture"),
        ("l.ods", b"PK\x03\x04", "a spreadsheet's own format"),
        ("l.csv", b"PK\x03\x04rest", "an Excel workbook or a zip file"),
        ("l.csv", b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
        ("l.csv", b"PAR1", "a Parquet file"),
        ("l.pkl", b"\x80\x04", "a pickle"),
        ("l.csv.gz", b"\x1f\x8b", "a packed file"),
        ("l.json", b'{"a.png": 1}', "not a list with one object for each row"),
        ("l.json", b"[1, 2]", "not a list with one object for each row"),
        ("l.json", b"[", "not JSON"),
        ("l.json", b"[]", "no rows"),
        ("l.parquet", b"PAR1 and no more", "Cannot read the Parquet file"),
    ],
)
@pytest.mark.parametrize("read", [read_labels, read_groups, read_parts])
def test_other_formats_are_refused_by_their_name(tmp_path, read, name, data, message):
    with pytest.raises(LabelError, match=message) as caught:
        read(write(tmp_path, data, name))
    assert caught.value.remedy


def test_groups_and_splits_are_read_by_the_rules_of_labels(tmp_path):
    people = [f"p{i % 7}" for i in range(40)]
    parts = [("train", "val", "test")[i % 3] for i in range(40)]
    for name, header, columns in (
        ("a.csv", ["", "image_id", "identity"], [range(40), IMAGES, people]),
        ("b.csv", ["identity", "image_id"], [people, IMAGES]),
        ("c.csv", ["id", "age", "person", "path"], [range(40), TRUTH, people, IMAGES]),
    ):
        found = read_groups(write(tmp_path, rows(header, *columns, delimiter=";"), name), IMAGES)
        assert found == dict(zip(IMAGES, people, strict=True)), name
    path = write(tmp_path, rows(["", "v", "split", "image_id"], range(40), TRUTH, parts, IMAGES))
    assert read_parts(path, IMAGES) == dict(zip(IMAGES, parts, strict=True))
    table = read_labels(write(tmp_path, rows(["image_id", "v"], IMAGES, TRUTH), "labels2.csv"), IMAGES)
    with pytest.raises(LabelError, match="which column holds for each file its group"):
        read_groups(write(tmp_path, rows(["image_id", "a", "b"], IMAGES, TRUTH, TRUTH)), IMAGES)
    with pytest.raises(LabelError, match="line 2: expected a file name and its group, got '\\?'"):
        read_groups(write(tmp_path, "a.png,x\nb.png,?\n"))
    counted = {str(i): "p" for i in range(40)}
    with pytest.raises(LabelError, match="The groups call their images 0 to 39"):
        join_labels(IMAGES, table, counted)


# persons


@pytest.mark.parametrize(
    ("files", "columns", "hint"),
    [
        (
            [f"{p}_{i:04d}.jpg" for p in ("Ann_Lee", "Bo_Li", "Cy_O'Neil") for i in (1, 2, 3)],
            ["x"],
            "3 persons, e.g. 'Ann_Lee'",
        ),
        ([f"lfw/{p}/{p}_{i:04d}.jpg" for p in ("Ann", "Bo", "Cy") for i in (1, 2)], ["x"], "3 persons"),
        ([f"{p}/{p}_left_{i}.png" for p in ("an2i", "at33", "bo1") for i in (1, 2)], ["x"], "3 persons"),
        (IMAGES, ["age", "Person"], "a column 'Person'"),
        (IMAGES, ["x"], ""),
        ([f"img_{i:04d}.png" for i in range(9)], ["x"], ""),
        ([f"{p}_0001.jpg" for p in ("Ann", "Bo", "Cy", "Di")], ["x"], ""),
        ([f"train/{i}.png" for i in range(9)], ["x"], ""),
    ],
    ids=str,
)
def test_a_hint_where_several_images_seem_to_show_one_person(files, columns, hint):
    assert (hint in identity_hint(files, columns)) if hint else identity_hint(files, columns) == ""


def test_a_join_keeps_the_notes_of_columns():
    table = LabelTable(("a.png",), {"n": LabelColumn("number", np.ones(1, np.float32), "a note")}, "file", ("a note",))
    found = join_labels(["a.png"], table)
    assert (found.columns["n"].note, found.notes, found.file_column) == ("a note", ("a note",), "file")
