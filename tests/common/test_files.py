"""Files that are whole or not there, written by one process at a time."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxlin.common.errors import CheckpointError, JaxlinError
from jaxlin.common.files import PartialFile, checksum, write_atomically, write_lock


def test_what_is_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, lambda beside: beside.write_text("one"))
    with pytest.raises(JaxlinError, match=r"a cannot be written: No space left on device"):
        write_atomically(path, lambda beside: (beside.write_text("tw"), _full()))
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that cannot be written, cleaning up fails too."""

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(CheckpointError, match="No space left"):
        write_atomically(tmp_path / "a", lambda beside: _full(), CheckpointError)


@pytest.mark.parametrize("name", ["a" * 300, "no/folder/a", "a\0b", "a\ud800"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(JaxlinError, match="cannot be written"):
        write_atomically(tmp_path / name, lambda beside: beside.write_text("x"))
    with pytest.raises(JaxlinError, match="cannot be written"), write_lock(tmp_path / name):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    with write_lock(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


HOLD = """
import sys, time
from dataclasses import replace
from pathlib import Path
from typing import Any
from jaxlin.common.files import write_lock
with write_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes(tmp_path: Path) -> None:
    """The second is told so; and a first that is killed holds nobody up."""
    path = tmp_path / "a"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(JaxlinError, match=r"a: another process is writing it"), write_lock(path):
            pass
        first.kill()
    with write_lock(path):
        assert [each.name for each in tmp_path.iterdir()] == [".a.lock.tmp"]
    assert not list(tmp_path.iterdir())


class TestPartialFile:
    """An interrupted call goes on from its own work, and from no other."""

    partial = PartialFile(Path("folder/lens.pt"), "Lens", {"model": "a", "layers": [0, 1]}, "model or layers")

    def test_progress_comes_back(self) -> None:
        assert self.partial.path == Path("folder/lens.pt.partial")
        record = self.partial.record(prompts=3)
        assert self.partial.progress(record, "a record") == {"prompts": 3}

    @pytest.mark.parametrize("identity", [{"model": "b", "layers": [0, 1]}, {"model": "a"}, {}])
    def test_other_work(self, identity: dict[str, Any]) -> None:
        record = replace(self.partial, identity=identity).record(prompts=3)
        with pytest.raises(JaxlinError, match=r"lens\.pt\.partial was begun with another model or layers"):
            self.partial.progress(record, "a record")

    @pytest.mark.parametrize("record", ["", "{", "[]", b"\xff", '{"model": "a", "model": "a"}'])
    def test_damage(self, record: str | bytes) -> None:
        with pytest.raises(JaxlinError, match=r"lens\.pt\.partial is damaged: expected a record\. Delete it"):
            self.partial.progress(record, "a record")


def test_a_checksum_is_of_all_contents() -> None:
    assert checksum(b"ab", b"c") == checksum(b"abc") != checksum(b"abd")
