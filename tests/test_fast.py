"""Every row of the fast selection names a folder, a file or a test that exists, so that none is lost by a rename."""

import ast
from pathlib import Path
from typing import Any

import fast

TESTS = Path(__file__).parent


def names_tests(row: str) -> bool:
    """Whether `row`, without its case in brackets, is a folder with tests, a file, or a class or function in a file."""
    path, *names = row.split("[")[0].split("::")
    if not names:
        return (TESTS / path).is_file() or any((TESTS / path).rglob("test_*.py"))
    node: Any = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    for name in names:
        node = next((part for part in node.body if getattr(part, "name", None) == name), None)
        if node is None:
            return False
    return True


def test_rows_of_the_selection() -> None:
    assert [row for row in fast.FAST if not names_tests(row)] == []
    assert not names_tests("nowhere")
    assert not names_tests("test_fast.py::test_that_is_gone")


def test_what_a_row_selects() -> None:
    assert fast.is_fast("common/test_files.py::test_two_processes")
    assert fast.is_fast("test_parity.py::test_variant[gemma2]")
    assert not fast.is_fast("test_parity.py::test_variant[gemma]")
    assert not fast.is_fast("report/test_report.py::TestFiles")
