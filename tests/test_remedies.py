"""Whatever is refused comes with what to do instead."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import diticli
from diticli import errors

ROOT = Path(diticli.__file__).parent
ERRORS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type)
    and issubclass(kind, errors.DiTiError)
    and "remedy" in inspect.signature(kind).parameters  # else it has one of its own
}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_error_that_a_command_raises_has_a_remedy(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    raised = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ERRORS]
    assert [call.lineno for call in raised if not any(key.arg in ("remedy", None) for key in call.keywords)] == []
