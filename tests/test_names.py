"""Which paths a pattern means, and names that stay unique when several places are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tar_images import picture

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
