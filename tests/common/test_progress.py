"""A stage and a bar share one line of a terminal."""

import io
import time

import pytest

from jaxlin.common.progress import progress_bar, stage


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_takes_the_place_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with stage("computing"):
        bar = progress_bar(show=True, total=2, desc="rows")
        bar.refresh()
        before = terminal.getvalue().partition("rows")[0]
        time.sleep(0.3)  # in which a stage turns its sign thrice
        assert "computing" in before
        assert "computing" not in terminal.getvalue().removeprefix(before)
        bar.close()
        assert "computing" in terminal.getvalue().removeprefix(before)
    end = terminal.getvalue()
    time.sleep(0.3)
    assert terminal.getvalue() == end


def test_a_file_gets_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    for show, stderr in ((True, io.StringIO()), (False, Terminal())):
        monkeypatch.setattr("sys.stderr", stderr)
        bar = progress_bar([1], show=show)
        bar.refresh()
        assert list(bar) == [1]
        if show:
            with stage("computing"):
                time.sleep(0.2)
        assert not stderr.getvalue()
