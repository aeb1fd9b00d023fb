"""What the check leaves to the thorough selection: tests that exist, never all variants of one, never all of a type."""

from types import SimpleNamespace
from typing import Any

import pytest
from kinds import KINDS
from test_fast import names_tests
from thorough import LONG, SHARES, is_whole_suite, left_out

SOURCES = pytest.Config.ArgsSource


def test_every_name_is_that_of_a_test() -> None:
    assert [name for name in (*SHARES, *LONG) if not names_tests(name)] == []


def test_each_type_is_under_some_analysis_and_each_analysis_has_some_types() -> None:
    tests = [name for name in SHARES if name.startswith("test_kinds.py")]
    nodes = [f"{test}[{kind}]" for test in tests for kind in KINDS]
    checked = set(nodes) - left_out([*nodes, *LONG])
    assert {test: sum(node.startswith(f"{test}[") for node in checked) for test in tests} == {
        test: len(KINDS) // SHARES[test] for test in tests
    }
    assert {node.partition("[")[2] for node in checked} == {f"{kind}]" for kind in KINDS}
    assert left_out(LONG) == set(LONG)


@pytest.mark.parametrize(
    ("source", "options", "is_whole"),
    [
        (SOURCES.TESTPATHS, {}, True),
        (SOURCES.TESTPATHS, {"keyword": "llama"}, False),
        (SOURCES.TESTPATHS, {"markexpr": "fast"}, False),
        (SOURCES.ARGS, {}, False),
    ],
)
def test_what_is_named_is_run_whole(source: Any, options: dict[str, str], is_whole: bool) -> None:
    option = SimpleNamespace(**{"keyword": "", "markexpr": "", **options})
    config: Any = SimpleNamespace(args_source=source, option=option)
    assert is_whole_suite(config) is is_whole
    config.workerinput = {"is_whole_suite": not is_whole}
    assert is_whole_suite(config) is not is_whole
