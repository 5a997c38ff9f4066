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
LEFT_OUT = ("skip", "skipif", "xfail", "slow", "gpu")


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
    marks = " ".join(map(ast.unparse, found[0].decorator_list))
    assert not [mark for mark in LEFT_OUT if re.search(rf"\b{mark}\b", marks)]
