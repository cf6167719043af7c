"""docs/reliability.md: every promise names tests that there are."""

import ast
import re
from pathlib import Path

import pytest

from conftest import REPOSITORY

TESTS = REPOSITORY / "tests"
ROWS = [
    cells
    for line in (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| promise |")
    for cells in [[cell.strip() for cell in line.strip("|").split(" | ")]]
]


def names(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:50] for row in ROWS])
def test_a_promise_is_kept_by_tests_that_there_are(row: list[str]) -> None:
    assert len(row) == 3, row
    named = re.findall(r"`((?:[\w/]+\.py)?(?:::\w+)?)`", row[2])
    if not named:
        assert row[2].startswith("the same"), row
        return
    before = ""
    for name in named:
        file, _, test = name.partition("::")
        # A test is of the file that stands right before it.
        file = file or (before if before.endswith(".py") else "")
        where = [TESTS / file] if file else [path for path in TESTS.rglob("test_*.py") if test in names(path)]
        assert where, f"no test {name}"
        assert where[0].is_file(), f"no file {file}"
        assert not test or test in names(where[0]), f"{file} has no {test}"
        before = name
