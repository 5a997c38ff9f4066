"""Label files in all their dialects, and what is said of broken ones."""

import numpy as np
import pytest

from diticli.data.labels import LabelColumn, LabelTable, folder_labels, read_groups, read_labels, read_parts
from diticli.errors import LabelError

CELEBA = "3\nBald Smiling \n000001.jpg -1  1\n000002.jpg  1 -1\n000003.jpg -1 -1\n"


def write(tmp_path, text, name="labels.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(*files: str) -> LabelTable:
    return LabelTable(files, {"a": LabelColumn("number", np.zeros(len(files), np.float32))})


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_celeba_list(tmp_path, ending):
    labels = read_labels(write(tmp_path, CELEBA.replace("\n", ending), "list_attr_celeba.txt"))
    assert labels.files == ("000001.jpg", "000002.jpg", "000003.jpg")
    assert list(labels.columns) == ["Bald", "Smiling"]
    assert labels.columns["Bald"].kind == "binary"
    np.testing.assert_array_equal(labels.columns["Bald"].values, np.array([0, 1, 0], np.float32))
    assert labels.columns["Bald"].values.dtype == np.float32


def test_celebamask_hq_joins_an_lmdbs_rows_by_number(tmp_path):
    text = "4\nBald Smiling \n0.jpg  -1 1\n1.jpg  1 -1\n10.jpg  -1 -1\n10000.jpg  1 1\n"
    labels = read_labels(write(tmp_path, text, "CelebAMask-HQ-attribute-anno.txt"))
    assert labels.files == ("0.jpg", "1.jpg", "10.jpg", "10000.jpg")
    assert labels.columns["Smiling"].values.tolist() == [1, 0, 0, 1]
    for suffix in ("png", "jpg"):  # the last is equal as it is, which must not keep the others from pairing
        rows, known = labels.match([f"{i:05d}.{suffix}" for i in (*range(12), 10000)])
        assert (rows.tolist(), known.tolist()) == ([0, 1, 10, 12], [0, 1, 2, 3])


LFW_OFFICIAL = (
    "# lfw_attributes.txt - attribute scores for LFW, version 1\n"
    "#\tperson\timagenum\tMale\tBrown Hair\n"
    "Aaron Eckhart\t1\t1.5683\t-2.5\n"
    "Abdel Nasser Assidi\t12\t0.1\t1e-3\n"
)
LFW_CSV = "person,imagenum,Male,Brown Hair\nAaron Eckhart,1,1.5683,-2.5\nAbdel Nasser Assidi,12,0.1,1e-3\n"


@pytest.mark.parametrize(
    "text",
    [LFW_OFFICIAL, LFW_OFFICIAL.replace("\n", "\r\n"), LFW_OFFICIAL.replace("\n", "\t\n"), LFW_CSV],
    ids=["official", "crlf", "trailing tabs", "csv"],
)
def test_lfw_scores_name_the_files_of_lfw(tmp_path, text):
    labels = read_labels(write(tmp_path, text, "lfw_attributes.txt"))
    assert labels.files == (
        "Aaron_Eckhart/Aaron_Eckhart_0001.jpg",
        "Abdel_Nasser_Assidi/Abdel_Nasser_Assidi_0012.jpg",
    )
    assert list(labels.columns) == ["Male", "Brown Hair"]
    assert {column.kind for column in labels.columns.values()} == {"number"}
    np.testing.assert_array_equal(labels.columns["Brown Hair"].values, np.array([-2.5, 1e-3], np.float32))
    assert labels.match(["lfw/Aaron_Eckhart/Aaron_Eckhart_0001.jpg"])[1].tolist() == [0]
    assert labels.match(["Abdel_Nasser_Assidi_0012.png"])[1].tolist() == [1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Aaron Eckhart\tone\t1\t2", "line 3: no number of the person's image"),
        ("Aaron Eckhart\t1\t1", "line 3: 2 values, but the header has 3"),
        ("\t1\t1\t2", "line 3: no file name"),
        ("A\t1\t1\t2\nA\t01\t1\t2", "line 4: 'A/A_0001.jpg' occurs twice"),
        ("", "a header but no rows"),
    ],
)
def test_broken_lfw_files_are_named_with_their_line(tmp_path, row, message):
    header = "".join(LFW_OFFICIAL.splitlines(keepends=True)[:2])
    with pytest.raises(LabelError, match=message) as caught:
        read_labels(write(tmp_path, header + row, "lfw_attributes.txt"))
    assert caught.value.remedy


def test_folders_are_categories():
    labels = folder_labels(["train/dog/1.png", "val/cat/1.png", "3.png", "cat/4.png"])
    assert labels.columns["folder"].kind == "category"
    assert labels.columns["folder"].values.tolist() == ["dog", "cat", "", "cat"]
    assert labels.match(["val/cat/1.png"])[1].tolist() == [1]
    for names in (["1.png", "2.png"], []):
        with pytest.raises(LabelError, match="do not lie in folders") as caught:
            folder_labels(names)
        assert caught.value.remedy


def test_csv_kinds_are_told_from_the_values(tmp_path):
    text = (
        "image_id,zero_one,signed,truth,age,mood,always,code,huge\n"
        "a.png,0,-1,True,31.5,happy,1,1_0,1\n"
        "b.png,1,1,false,-2e3,sad,1,2_0,1e300\n"
        "c.png,,nan,,None,,1,3_0,inf\n"
    )
    columns = read_labels(write(tmp_path, text)).columns
    kinds = {name: column.kind for name, column in columns.items()}
    assert kinds == {
        "zero_one": "binary", "signed": "binary", "truth": "binary", "age": "number", "mood": "category",
        "always": "binary", "code": "category", "huge": "binary",
    }  # fmt: skip
    nan = np.nan
    np.testing.assert_array_equal(columns["zero_one"].values, np.array([0, 1, nan], np.float32))
    np.testing.assert_array_equal(columns["signed"].values, np.array([0, 1, nan], np.float32))
    np.testing.assert_array_equal(columns["truth"].values, np.array([1, 0, nan], np.float32))
    np.testing.assert_array_equal(columns["age"].values, np.array([31.5, -2000, nan], np.float32))
    np.testing.assert_array_equal(columns["huge"].values, np.array([1, nan, nan], np.float32))
    assert columns["mood"].values.tolist() == ["happy", "sad", ""]


def test_csv_with_mark_carriage_returns_quotes_and_blank_lines(tmp_path):
    text = b'\xef\xbb\xbffilename,caption,n\r\n"a, b.png","says ""hi""\r\ntwice",3\r\n\r\nc.png,x,4\r\n'
    labels = read_labels(write(tmp_path, text))
    assert labels.files == ("a, b.png", "c.png")
    assert labels.columns["caption"].values[0] == 'says "hi"\r\ntwice'
    np.testing.assert_array_equal(labels.columns["n"].values, [3, 4])


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv_delimiter_is_the_headers(tmp_path, delimiter):
    text = "file,a,b\nx.png,1,2\ny.png,0,3\n".replace(",", delimiter)
    assert list(read_labels(write(tmp_path, text)).columns) == ["a", "b"]


def test_metadata_csv_may_name_its_file_column_anywhere_and_index_columns_are_dropped(tmp_path):
    labels = read_labels(write(tmp_path, ",age,file_name\n0,5,x/a.png\n1,6,x/b.png\n", "metadata.csv"))
    assert labels.files == ("x/a.png", "x/b.png")
    assert list(labels.columns) == ["age"]


def test_metadata_jsonl(tmp_path):
    text = (
        '{"file_name": "a.png", "hat": true, "box": [1, 2], "age": 3}\n\n'
        '{"file_name": "b.png", "hat": false, "mood": "ok", "age": null}\n'
    )
    labels = read_labels(write(tmp_path, text, "metadata.jsonl"))
    assert labels.files == ("a.png", "b.png")
    assert list(labels.columns) == ["hat", "age", "mood"]
    np.testing.assert_array_equal(labels.columns["hat"].values, [1, 0])
    np.testing.assert_array_equal(labels.columns["age"].values, [3, np.nan])
    assert labels.columns["mood"].values.tolist() == ["", "ok"]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "l.csv", "is empty"),
        (" \n\n", "l.csv", "is empty"),
        ("a.png,1\nb.png,0\n", "l.csv", "line 1: no header"),
        ("filename,a\n", "l.csv", "no rows"),
        ("filename\na.png\n", "l.csv", "no label column"),
        ("filename,a\nx.png,1\ny.png,1,2\n", "l.csv", "line 3: 3 values, but the header has 2"),
        ("filename,a\nx.png,1\n\nx.png,0\n", "l.csv", "line 4: 'x.png' occurs twice"),
        ("filename,a\n,1\n", "l.csv", "line 2: no file name"),
        ("filename,a,a\nx.png,1,2\n", "l.csv", "line 1: the column 'a' occurs twice"),
        ('filename,a\nx.png,"1\n', "l.csv", "line 2"),
        (b"filename,a\nx.png,1\ny\xff.png,1\n", "l.csv", "line 3: not UTF-8"),
        (b"\xff\xfef\x00i\x00", "l.csv", "line 1: not UTF-8"),
        ("2\nBald Smiling\n1.jpg -1 1\n2.jpg -1\n", "l.txt", "line 4: 2 values"),
        ("9\nBald\n1.jpg -1\n", "l.txt", "announces 9 rows, but there are 1"),
        ("1\n1.jpg -1\n", "l.txt", "line 2: '1.jpg' is no column name"),
        ("2\nBald\n1.jpg 1\n1.jpg 1\n", "l.txt", "line 4: '1.jpg' occurs twice"),
        ("5", "l.txt", "announces 5 rows"),
        ('{"file_name": "a.png", "x": 1}\n{"x": 1}\n', "m.jsonl", "line 2: no file name"),
        ('{"file_name": "a.png"\n', "m.jsonl", "line 1: not JSON"),
        ("[1]\n", "m.jsonl", "line 1: not a JSON object"),
        ('{"file_name": "a.png"}\n{"file_name": "a.png"}\n', "m.jsonl", "line 2: 'a.png' occurs twice"),
    ],
)
def test_broken_label_files_are_named_with_line_and_remedy(tmp_path, text, name, message):
    path = write(tmp_path, text, name)
    with pytest.raises(LabelError) as caught:
        read_labels(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("read", [read_labels, read_groups])
def test_a_missing_file_or_a_folder_is_an_error(tmp_path, read):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(LabelError, match="Cannot read"):
            read(path)


def test_match_prefers_the_whole_relative_name():
    rows, known = table("b/1.png", "a/1.png").match(["a/1.png", "b/1.png", "c/2.png"])
    assert rows.tolist() == [0, 1]
    assert known.tolist() == [1, 0]
    assert rows.dtype == known.dtype == np.int64


def test_match_ignores_how_paths_are_spelt():
    rows, known = table("./img\\x.png").match(["img/x.png"])
    assert (rows.tolist(), known.tolist()) == ([0], [0])


def test_match_falls_back_to_unique_base_names_then_stems():
    assert table("2.jpg", "1.jpg").match(["x/1.jpg", "y/2.jpg"])[1].tolist() == [1, 0]
    assert table("1.jpg", "2").match(["x/2.png", "x/1.png"])[1].tolist() == [1, 0]
    assert table("v1.5_a").match(["x/v1.5_a.png"])[1].tolist() == [0]


def test_match_never_guesses_between_equal_base_names():
    for names, files in ((["x/1.jpg", "y/1.jpg"], ("1.jpg",)), (["1.jpg"], ("x/1.jpg", "y/1.jpg"))):
        rows, known = table(*files).match(names)
        assert rows.size == known.size == 0


def test_match_by_number_only_where_the_whole_stem_is_one():
    assert table("7.jpg", "8.jpg").match(["000008.png"])[1].tolist() == [1]
    assert table("a7.jpg").match(["a007.png"])[0].size == 0
    assert table("7.jpg").match(["7/x.png", "7b.png"])[0].size == 0
    assert table("7.jpg", "07.jpg").match(["007.png"])[0].size == 0
    assert table("7.jpg", "07.jpg").match(["07.jpg", "7.jpg"])[1].tolist() == [1, 0]
    assert table("b/7.jpg", "a/8.jpg").match(["a/008.jpg", "b/007.jpg"])[1].tolist() == [1, 0]
    assert table("0.jpg").match(["000.jpg", "00a.jpg"])[0].tolist() == [0]


def test_match_of_nothing_is_empty():
    assert [part.size for part in table("a.png").match(["b.png"])] == [0, 0]
    assert [part.size for part in table("a.png").match([])] == [0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "000001.jpg 2880\n000002.jpg 17\n",
        "000001.jpg\t2880\r\n000002.jpg\t17\r\n",
        "000001.jpg,2880\n000002.jpg,17\n",
        "image_id,identity\n000001.jpg,2880\n000002.jpg,17\n",
        "whatever;person\n000001.jpg;2880\n000002.jpg;17\n",
    ],
)
def test_groups_with_and_without_header(tmp_path, text):
    assert read_groups(write(tmp_path, text)) == {"000001.jpg": "2880", "000002.jpg": "17"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("filename,person\n", "no rows"),
        ("a.png 1\nb.png\n", "line 2"),
        ("a.png,1\nb.png,2,3\n", "line 2: expected a file name and its group, got 3"),
        ("a.png,\n", "line 1"),
        ("a.png 1\na.png 2\n", "line 2: 'a.png' occurs twice"),
        (b"a.png 1\n\xff 2\n", "line 2: not UTF-8"),
    ],
)
def test_broken_group_files_are_named(tmp_path, text, message):
    with pytest.raises(LabelError) as caught:
        read_groups(write(tmp_path, text))
    assert message in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n",
        "image_id,partition\r\n000001.jpg,0\r\n000002.jpg,1\r\n000003.jpg,2\r\n",
        "file_name\tsplit\n000001.jpg\ttrain\n000002.jpg\tValidation\n000003.jpg\tTEST\n",
    ],
)
def test_parts_of_a_given_split(tmp_path, text):
    parts = read_parts(write(tmp_path, text, "list_eval_partition.txt"))
    assert parts == {"000001.jpg": "train", "000002.jpg": "val", "000003.jpg": "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a.png 0\nb.png 3\n", "'b.png' belongs to part '3'"),
        ("a.png 0\nb.png\n", "line 2: expected a file name and its part"),
        ("a.png 0\na.png 1\n", "line 2: 'a.png' occurs twice"),
    ],
)
def test_broken_splits_are_named(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(LabelError, match=message) as caught:
        read_parts(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy
