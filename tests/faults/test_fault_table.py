"""The table of faults in the documents names the tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text("utf-8")
ROW = re.compile(r"^\| (\d+[a-g]?) \| .* \| ([^|]*) \|$", re.MULTILINE)


def proven() -> dict[str, set[str]]:
    """The files with tests of each fault, by its number."""
    found: dict[str, set[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                told = ast.get_docstring(node) or ""
                for number in re.findall(r"\b[Ff]ault (\d+[a-g]?):", told):
                    found.setdefault(number, set()).add(path.name)
                if re.match(r"Fault 3: SIGKILL while migrating", told):
                    found.setdefault("8b", set()).add(path.name)
    return found


def test_every_row_of_the_table_names_tests_of_that_fault_and_no_test_is_left_out() -> None:
    rows = {
        number: set(re.findall(r"(test_\w+\.py)", tests)) for number, tests in ROW.findall(PAGE)
    }

    assert len(rows) > 20
    assert rows == proven()
