"""The table of SECURITY.md: every promise names a guard and a test that are there and run with all others."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "::" in line
]
LEFT_OUT = ("skip", "skipif", "xfail", "slow", "gpu", "importorskip")


def test_the_table_is_there():
    assert len(ROWS) > 20
    assert all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_a_row_names_a_guard_and_a_test_that_runs(row):
    _, guard, test = row
    assert (ROOT / guard.strip("`")).is_file()
    name, function = test.strip("`").split("::")
    tree = ast.parse((ROOT / "tests" / name).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    assert len(found) == 1
    module = [  # what holds for all tests of the file
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Expr) or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark")
    ]
    marks = " ".join([*map(ast.unparse, found[0].decorator_list), *module])
    assert not [mark for mark in LEFT_OUT if re.search(rf"\b{mark}\b", marks)]


def test_every_row_is_collected_with_all_other_tests(request):
    """Of the files that pytest collected, which in CI are all."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    tests = {(item.path.relative_to(ROOT / "tests").as_posix(), item.originalname) for item in items}
    files = {name for name, _ in tests}
    given = request.config.option
    if not (given.keyword or given.markexpr or any("::" in argument for argument in request.config.args)):
        wanted = {tuple(row[2].strip("`").split("::")) for row in ROWS}
        assert {row for row in wanted if row[0] in files} <= tests
    (command,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m pytest" in line]
    (options,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("addopts")]
    for text in (command.partition("-m pytest")[2], options):
        assert not re.search(r"-k|-m\b|--ignore|--deselect", text), "CI leaves no test out"
