"""Regular files only, strict JSON, short quotations."""

import os

import pytest

from diticli.reading import QUOTED, check_regular, parse_json, quoted, read_regular, read_table_bytes, shortened


def test_quotations_are_short_whatever_they_quote():
    assert quoted("plain") == "'plain'"
    assert quoted([1, 2]) == "[1, 2]"
    shared = ["x" * 50]
    for _ in range(40):  # two to the power of forty items, if they were all written
        shared = [shared, shared]
    for value in ("x" * 10**6, list(range(10**6)), 10**4000, shared, {"a": shared}):
        assert len(quoted(value)) <= QUOTED
    assert shortened("one\n  line") == "one line"
    assert len(shortened("x" * 10**6)) == QUOTED


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "to a pipe").symlink_to("pipe")
    assert read_regular(tmp_path / "file") == read_regular(tmp_path / "link") == read_table_bytes(tmp_path / "file")
    for name in (tmp_path / "pipe", tmp_path / "to a pipe", "/dev/null"):
        with pytest.raises(OSError, match="not a regular file"):
            check_regular(name)
    with pytest.raises(IsADirectoryError):
        check_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "none")


def test_json_knows_no_nan():
    assert parse_json(b'{"a": [1.5, null]}') == {"a": [1.5, None]}
    for text in ("NaN", "[Infinity]", '{"a": -Infinity}', "{", "9" * 5000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
