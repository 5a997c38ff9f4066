"""Which paths a pattern means, and names that stay unique when several places are read."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from test_tar_images import picture, write_tar

from diticli.data import name_lists
from diticli.data.images import open_images
from diticli.data.names import expand_pattern, unique_names
from diticli.errors import DataError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("s{8..11}", ["s8", "s9", "s10", "s11"]),
        ("s{08..11}", ["s08", "s09", "s10", "s11"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("s{5..5}.tar", ["s5.tar"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(spec: str, expected: list[str]) -> None:
    assert [str(path) for path in expand_pattern(spec)] == expected


@pytest.mark.parametrize("spec", ["s{3..1}", "s{x}", "s{}", "{0..99999}{0..99999}", "nothing-here-*.tar"])
def test_patterns_that_mean_nothing(spec: str) -> None:
    with pytest.raises(DataError) as caught:
        expand_pattern(spec)
    assert caught.value.remedy


def test_a_path_that_exists_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ("a{1}", "b[x]*"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.png").write_bytes(picture(0))
        assert len(open_images(str(tmp_path / name), 8)) == 1


def test_names_grow_only_as_far_as_needed() -> None:
    roots = [Path("/p/a/t"), Path("/p/b/t")]
    assert unique_names(roots, ["1", "2"]) == ["1", "2"]
    assert unique_names(roots, ["1", "1"]) == ["a/t/1", "b/t/1"]
    assert unique_names([], []) == []


def test_lists_from_a_file_and_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", {f"{name}.png": picture(1)})
    names = f"{tmp_path}/c.tar\n\n  {tmp_path}/{{a,b}}.tar\r\n"
    (tmp_path / "list.txt").write_text(names)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    for spec in (f"@{tmp_path}/list.txt", "-"):
        source = open_images(spec, 8)
        assert [source.file_name(i) for i in range(len(source))] == ["c.png", "a.png", "b.png"]
    with pytest.raises(DataError, match="list stdin is empty"):
        open_images("-", 8)
    assert len(open_images([f"@{tmp_path}/list.txt", f"{tmp_path}/a.tar"], 8)) == 3


def test_lists_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_bytes(b" \n\n")
    (tmp_path / "nul").write_bytes(b"a\0b\n")
    (tmp_path / "gone").write_text(f"{tmp_path}/x.tar\n")
    (tmp_path / "nested").write_text(f"@{tmp_path}/gone\n")
    for name in ("missing", "empty", "nul", "gone", "nested", ".", "a\0b"):
        with pytest.raises(DataError) as caught:
            open_images(f"@{tmp_path}/{name}", 8)
        assert caught.value.remedy
    monkeypatch.setattr(name_lists, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="not a regular file"):
        open_images("@/dev/zero", 8)
    (tmp_path / "long").write_bytes(b"a" * 1001)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        open_images(f"@{tmp_path / 'long'}", 8)


def test_a_file_called_like_a_list_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "@a.png").write_bytes(picture(1))
    assert open_images("@a.png", 8).file_name(0) == "@a.png"
