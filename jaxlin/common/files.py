"""Reading files of strangers; writing files that appear complete or not at all, by one process, and go on later."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jaxlin.common.errors import CheckpointError, JaxlinError
from jaxlin.common.strict_json import parse_object

try:
    import fcntl
except ImportError:  # Windows, where `write_lock` does not exclude another process
    fcntl = None


UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Errors of file systems that have no locks, or that cannot reserve room for a file."""


def error_reason(error: BaseException) -> str:
    """The reason that the operating system gives for an error, or its message."""
    return getattr(error, "strerror", None) or str(error)


def checksum(*contents: bytes) -> str:
    """A hash of the contents, by which damage to a file is noticed."""
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def path_exists(path: Path) -> bool:
    """Whether there is anything at `path`; False also for a name that the system does not allow."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def check_regular_file(path: Path) -> None:
    """Refuse a pipe, a device or a folder: a pipe would be waited for, and a device read without end.

    Raises:
        CheckpointError: there is something at `path` that is not a regular file.
    """
    if path_exists(path) and not path.is_file():
        raise CheckpointError(f"{path}: expected a file; found another kind of thing.")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: there is no such file, or it does not hold an object.
    """
    check_regular_file(path)
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: expected a {path.name}; found none.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: expected a JSON object; found text that is not one ({error}).") from error


def write_atomically(path: Path, write: Callable[[Path], object], kind: type[JaxlinError] = JaxlinError) -> None:
    """Write a temporary file beside `path`, then rename it to `path`.

    Args:
        path: the file to write; an existing one is replaced.
        write: writes the content to the path that it is called with.
        kind: the class of the error.

    Raises:
        JaxlinError: the file cannot be written; what was at `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # another process may be writing the same file
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError, ValueError) as error:
        raise kind(f"{path} cannot be written: {error_reason(error)}.") from error
    finally:
        # In a folder that cannot be written this fails too, and its error would hide the first one.
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_lock(path: Path, kind: type[JaxlinError] = JaxlinError) -> Iterator[None]:
    """Exclude other processes from writing `path`, until this context is left or this process ends.

    The lock is on a file beside `path`, which is deleted at the end; one that a killed process has left locks nothing.
    The package `filelock` is not used, because it leaves its file in the user's folder, and on a file system without
    locks it takes the mere presence of that file for a lock.

    Raises:
        JaxlinError: another process holds the lock, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock.tmp")
    try:
        descriptor = _open_locked(lock)
    except BlockingIOError as error:
        raise kind(f"{path}: another process is writing it. Wait for it to end, or choose another path.") from error
    except (OSError, ValueError) as error:
        raise kind(f"{path} cannot be written: {error_reason(error)}.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """A descriptor of the file at `path`, which this process has locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                return descriptor
            # The process before may have deleted the file after it was opened here: then another one is at `path`.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def resume_hint(state: str, path: Path) -> str:
    """What to tell a user who has interrupted a call: `state` is a phrase such as ``"6 of 10 rows are"``."""
    return f"{state} in {path}: the same call goes on from there."


@dataclass(frozen=True)
class PartialFile:
    """``NAME.partial``: the part of the file ``NAME`` that an interrupted call has left, which the same call continues.

    Whoever writes the data writes a `record` with them, in the same file or beside it; `progress` checks it.

    Attributes:
        out: the complete file, which is written last.
        label: the first word of messages, such as ``"Lens"``.
        identity: values of JSON that determine the result. Work with another identity is not continued.
        inputs: what the identity stands for, in words, such as ``"model, prompt or dtype"``.
    """

    out: Path
    label: str
    identity: dict[str, Any]
    inputs: str

    @property
    def path(self) -> Path:
        """Where the part is."""
        return self.out.with_name(f"{self.out.name}.partial")

    def record(self, **progress: Any) -> str:
        """The identity and `progress`, as JSON."""
        return json.dumps({**self.identity, **progress})

    def progress(self, record: str | bytes, expected: str) -> dict[str, Any]:
        """What a record says beside the identity.

        Args:
            record: text that `record` may have made.
            expected: what a readable record would be, in words, for the message.

        Raises:
            JaxlinError: the text is no JSON object, or is the record of another identity.
        """
        try:
            values = parse_object(record)
        except ValueError as error:
            raise self.damage(expected) from error
        if any(key not in values or values[key] != value for key, value in self.identity.items()):
            raise JaxlinError(
                f"{self.label}: {self.path} was begun with another {self.inputs}, or by an earlier jaxlin. "
                "Delete it or choose another path."
            )
        return {key: value for key, value in values.items() if key not in self.identity}

    def damage(self, expected: str) -> JaxlinError:
        """The error for a part that is not as it was written."""
        return JaxlinError(
            f"{self.label}: {self.path} is damaged: expected {expected}. Delete it, and the same call begins again."
        )
