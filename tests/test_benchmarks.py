"""The benchmark suite: a part of each, and its bars."""

from pathlib import Path

import pytest

from benchmarks import parity


@pytest.mark.parametrize("names", [["gemma2"], ["llama, nf4, nested"]])
def test_parity(names: list[str], tmp_path: Path, x64: None) -> None:
    rows = list(parity.rows(names))
    assert [row.within for row in rows] == [True] * len(names), "\n".join(map(str, rows))


def test_a_row_beyond_its_bar_is_marked() -> None:
    good = {"float32": 1e-6, "float64": 1e-14}
    residuals = {(dtype, rule): figure for dtype, figure in good.items() for rule in parity.RULES}
    row = parity.Row("a", good, residuals, 0.0, 1.0)
    assert row.within
    assert not row._replace(logits={**good, "float64": 1e-9}).within
    worse = row._replace(residuals={**residuals, ("float32", "up"): 4e-6})
    assert not worse.within
    assert "**4.0e-06**" in str(worse)


def test_parity_is_committed_whole() -> None:
    """PARITY.md has a row for every variant, and none beyond its bar."""
    text = (Path(parity.ROOT) / "PARITY.md").read_text()
    for name in parity.KNOWN:
        assert f"| {name} |" in text
    assert "**" not in text
