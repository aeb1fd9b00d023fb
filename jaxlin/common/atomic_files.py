"""Files that are whole or not there, and that one process writes at a time."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from jaxlin.common.errors import JaxlinError

try:
    import fcntl
except ImportError:  # Windows, where two processes are not kept apart
    fcntl = None


UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What file systems answer that have no locks, or cannot take room for a file that is not written yet."""


def reason(error: BaseException) -> str:
    """Why a file could not be written."""
    return getattr(error, "strerror", None) or str(error)


def write_whole(path: Path, write: Callable[[Path], object], kind: type[JaxlinError] = JaxlinError) -> None:
    """Let `write` make a file beside `path`, then give it that name.

    Args:
        path: where the file is to be; one that is there is replaced.
        write: is given the path to write to.
        kind: of the error.

    Raises:
        JaxlinError: it cannot be written, and what was at `path` is still there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # another process may be writing the same
    try:
        write(beside)
        os.replace(beside, path)
    except (OSError, SafetensorError, ValueError) as error:
        raise kind(f"{path} cannot be written: {reason(error)}.") from error
    finally:
        # In a folder that cannot be written, this fails too, and would hide why.
        with contextlib.suppress(OSError, ValueError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(path: Path, kind: type[JaxlinError] = JaxlinError) -> Iterator[None]:
    """Keep every other process from writing `path`, until this context is left or this process ends.

    The lock is on a file beside it, which is deleted at the end. One that a killed process has left holds nobody up.

    Raises:
        JaxlinError: another process writes it, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock.tmp")
    try:
        file = _locked(lock)
    except BlockingIOError as error:
        raise kind(f"{path}: another process is writing it. Wait for it to end, or choose another path.") from error
    except (OSError, ValueError) as error:
        raise kind(f"{path} cannot be written: {reason(error)}.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
        os.close(file)


def _locked(path: Path) -> int:
    """A descriptor of the file at `path`, with the lock on it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                return file
            # Whoever had it may have deleted it in between: then the next one at this path is another file.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
