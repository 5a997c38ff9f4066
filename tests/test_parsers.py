"""Label tables come back as they were written, and whatever else is put into a parser, it says what is wrong."""

import contextlib
import csv
import io
import json
import string

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diticli.chunks import ChunkLayout
from diticli.data.labels import read_groups, read_labels, read_parts
from diticli.data.listing import has_image_suffix
from diticli.data.names import expand_pattern
from diticli.editing.many_files import ManyOptions, plan_pairs
from diticli.editing.mixing import parse_alphas
from diticli.editing.table import read_pairs
from diticli.errors import ChunkError, ConfigError, DataError, DiTiError, FeatureFileError, LabelError
from diticli.features.formats import CONVERTERS
from diticli.features.read import FeatureMeta, read_features
from diticli.features.shard_writer import UnitRecord

steady = settings(deadline=None, derandomize=True, max_examples=60)
thorough = settings(deadline=None, derandomize=True, max_examples=300)
LAYOUT = ChunkLayout.uniform(chunks=8, latent_dim=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hypothesis runs a test many times in one call, so its files are overwritten."""
    return tmp_path_factory.mktemp("parsers")


# label tables come back

odd_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]) | st.sampled_from("\"',;\t |#/\\é中 "), max_size=12
).map(str.strip)
names = odd_text.map(lambda text: f"{text or 'x'}.jpg".lstrip())
plain_names = st.text(string.ascii_letters + string.digits + "_-./é中#'\"", min_size=1, max_size=10)


columns = odd_text.map(lambda text: f"c {text}".strip()).filter(lambda text: not has_image_suffix(text))


@st.composite
def tables(draw, files=names, column_names=columns):
    """File names, column names, and whole numbers [files, columns]."""
    chosen = draw(st.lists(files, min_size=1, max_size=6, unique=True))
    labels = draw(st.lists(column_names, min_size=1, max_size=4, unique=True))
    shape = (len(chosen), len(labels))
    values = draw(st.lists(st.integers(-9, 9), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return chosen, labels, np.array(values).reshape(shape)


def assert_table(table, files, labels, values):
    """The values come back, whatever kind each column was taken for."""
    assert list(table.files) == files
    assert list(table.columns) == labels
    for column, expected in zip(table.columns.values(), values.T, strict=True):
        if column.kind == "binary":
            assert set(expected.tolist()) <= {0, 1} or set(expected.tolist()) <= {-1, 1}
            expected = expected > 0
        assert column.values.tolist() == expected.astype(float).tolist()


@steady
@given(tables(), st.sampled_from([",", "\t", ";"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_csv_tables_come_back(folder, table, delimiter, newline, marked):
    files, labels, values = table
    header = ["file", *labels]
    # The delimiter is the one that the header has most of.
    assume(all(sum(cell.count(other) for cell in header) < len(labels) for other in ",\t;" if other != delimiter))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline)
    writer.writerows([header, *([file, *row] for file, row in zip(files, values.tolist(), strict=True))])
    path = folder / "labels.csv"
    path.write_text(text.getvalue(), encoding="utf-8-sig" if marked else "utf-8", newline="")
    assert_table(read_labels(path), files, labels, values)


@steady
@given(
    tables(plain_names, plain_names.map(lambda text: f"c{text}").filter(lambda t: not has_image_suffix(t))),
    st.integers(1, 3),
)
def test_celebas_lists_come_back(folder, table, blanks):
    files, labels, values = table
    gap = " " * blanks
    rows = [gap.join([file, *map(str, row)]) for file, row in zip(files, values.tolist(), strict=True)]
    path = folder / "list.txt"
    path.write_text("\n".join([str(len(files)), " ".join(labels), *rows, ""]), encoding="utf-8")
    assert_table(read_labels(path), files, labels, values)


@steady
@given(tables())
def test_metadata_jsonl_comes_back(folder, table):
    files, labels, values = table
    path = folder / "metadata.jsonl"
    rows = zip(files, values.tolist(), strict=True)
    path.write_text("\n".join(json.dumps({"file_name": f} | dict(zip(labels, row, strict=True))) for f, row in rows))
    assert_table(read_labels(path), files, labels, values)


@steady
@given(st.dictionaries(plain_names.map("{}.jpg".format).filter(has_image_suffix), st.integers().map(str), min_size=1))
def test_identity_lists_come_back(folder, groups):
    path = folder / "identity.txt"
    path.write_text("".join(f"{file} {group}\n" for file, group in groups.items()), encoding="utf-8")
    assert read_groups(path) == groups


# whatever is put into a parser, only typed errors with a remedy come out

TOKENS = [
    *("0", "1", "-", "-1", ",", ":", ";", ".", "/", "..", "~", "*", "?", "[", "]", "**", "{", "}", '"', "'", "#"),
    *("{a,b}", "{0..3}", "é", "٣", "𝟘", "nan", "inf", "1e999", "1_0", "0x1", "None", "true", "faces:", "faces:3"),
    *("a", "a.png", "b.jpg", ".png", "file_name", '"chunk_ends":', "Infinity", "null]", "\\ud800", "a,b\n", "2\nA B\n"),
    *("\n", "\r", "\r\n", "\t", " ", "\0", "\x1b[31m", "\ufeff", "\u2028", "9" * 20, "9" * 5000, "x" * 300),
    *('{"file_name": "a.png", ', '{"files": ["a"], ', '{"a": "x", "b": "y"}', "person\timagenum\tA"),
]
soup = st.lists(st.sampled_from(TOKENS) | st.text(st.characters(), max_size=3), max_size=10).map("".join)
encodings = st.sampled_from(["utf-8", "utf-8", "utf-16"])
encoded = st.builds(lambda text, encoding: text.encode(encoding, "surrogatepass"), soup, encodings)
raw = st.binary(max_size=60) | encoded


def only(kind, parse, *arguments):
    """`parse` works, or raises this kind of error with a message."""
    with contextlib.suppress(kind):
        return parse(*arguments)
    return None


@thorough
@given(soup)
def test_chunks_and_alphas(text):
    only(ChunkError, LAYOUT.parse, text)
    only(ConfigError, parse_alphas, text)


@thorough
@given(raw, st.sampled_from(["csv", "txt", "tsv", "jsonl"]))
def test_labels_groups_and_splits(folder, data, suffix):
    path = folder / f"labels.{suffix}"
    path.write_bytes(data)
    for read in (read_labels, read_groups, read_parts):
        only(LabelError, read, path)


values = st.none() | st.booleans() | st.integers() | st.floats() | soup
trees = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(soup, inner, max_size=3))
manifests = st.fixed_dictionaries(
    {"files": st.lists(soup, max_size=3) | trees},
    optional={
        **dict.fromkeys(["chunk_ends", "timestep_ends"], st.lists(st.integers() | st.floats(), max_size=3) | trees),
        "skipped": st.lists(st.fixed_dictionaries({"file": values, "reason": values}), max_size=2) | trees,
        **dict.fromkeys(["model", "preprocessing", "created", "unknown"], trees),
    },
)


@thorough
@given(raw | manifests.map(json.dumps))
def test_manifests(folder, text):
    meta = only(FeatureFileError, FeatureMeta.from_json, text)
    if meta is not None:
        assert all(isinstance(name, str) for name in meta.files)
        assert all(isinstance(item.reason, str) for item in meta.skipped)
        only(ChunkError, ChunkLayout.from_dict, {"ends": meta.chunk_ends, "timestep_ends": meta.timestep_ends})
    np.save(folder / "feats.npy", np.ones((2, 3), np.float32))
    (folder / "feats.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    only(FeatureFileError, read_features, folder / "feats.npy")


records = st.fixed_dictionaries(
    {
        "identity": values,
        "dim": st.integers() | values,
        "mtimes": st.lists(st.integers() | st.floats(), min_size=2, max_size=2) | trees,
        "shard": st.fixed_dictionaries(
            {
                "file": st.just("000000.npy") | values,
                **dict.fromkeys(["images", "rows", "bytes"], st.integers() | st.floats() | values),
                **dict.fromkeys(["sha256", "sidecar_sha256"], st.just("0" * 64) | values),
            }
        ),
    }
)


@thorough
@given(raw | records.map(json.dumps))
def test_records_of_units(folder, text):
    path = folder / "000000.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    UnitRecord.read(path)  # None for what is damaged, never an error


@steady
@given(trees, trees)
def test_layouts(timestep_ends, ends):
    only(ChunkError, ChunkLayout.from_dict, {"timestep_ends": timestep_ends, "ends": ends})
    only(ChunkError, ChunkLayout.from_dict, ends)


@pytest.mark.parametrize("suffix", [".npy", *CONVERTERS])
def test_feature_files_with_changed_bytes(folder, suffix):
    path, rows = folder / f"changed{suffix}", np.ones((3, 4), np.float32)
    if suffix == ".npy":
        np.save(path, rows)
    else:
        CONVERTERS[suffix](path, rows, ["a", "b", "c"], FeatureMeta(files=("a", "b", "c")).to_json())
    whole = path.read_bytes()
    changes = st.lists(
        st.tuples(st.integers(0, len(whole) - 1), st.sampled_from(b"()[]{}'\",:09<fO\n\0\xff")), max_size=5
    )

    @steady
    @given(changes, st.integers(0, len(whole)), st.sampled_from([b"", b"(", b"9" * 30, b"[" * 200, b"'"]))
    def check(changed, place, more):
        data = bytearray(whole)
        for at, byte in changed:
            data[at] = byte
        data[place:place] = more
        path.write_bytes(data)
        features = only(FeatureFileError, read_features, path)
        assert features is None or np.isfinite(features.values).all()

    check()


@thorough
@given(soup)
def test_patterns(folder, text):
    with contextlib.chdir(folder):
        only(DataError, expand_pattern, text.replace("/", "_"))  # "/**" is the whole disk


def test_wildcards_that_match_without_end(tmp_path, monkeypatch):
    """Two links to their own folder: `**` would find two to the power of forty files."""
    monkeypatch.setattr("diticli.data.names.MAX_MATCHES", 1000)
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path)
    with pytest.raises(DataError, match="matches more than 1,000 files"):
        expand_pattern(f"{tmp_path}/**")


cells = st.lists(st.sampled_from(TOKENS), max_size=3).map("".join)
pairs = st.fixed_dictionaries(dict.fromkeys(("a", "b", "chunks", "alphas", "name"), cells))


def as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["a", "b", "chunks", "alphas", "name"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


@thorough
@given(raw | st.lists(pairs, max_size=3).map(as_csv), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_tables_of_pairs(folder, data, suffix):
    path = folder / f"pairs.{suffix}"
    path.write_bytes(data)
    found = only(DiTiError, read_pairs, path) or []
    assert all("/" not in row.name and not row.name.startswith(".") for row in found)
    only(DiTiError, plan_pairs, found, folder, LAYOUT, "hash", ManyOptions())
