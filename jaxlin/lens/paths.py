"""Where lenses are written: a file is whole or not there."""

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jaxlin.errors import JaxlinError

KINDS = (".safetensors", ".pt")
"""The files that a lens can be in."""


def a_path(name: Any) -> Path:
    """`name` as a path.

    Raises:
        JaxlinError: it is none.
    """
    if not isinstance(name, str | PathLike) or "\0" in os.fspath(name):
        raise JaxlinError(f"Lens: expected a path; found {name!r}."[:200])
    return Path(name)


def check_path(path: str | PathLike[str]) -> Path:
    """`path`, if a lens can be written there.

    Raises:
        JaxlinError: another kind of file, one that exists, or no such directory.
    """
    out = a_path(path)
    if out.suffix not in KINDS:
        raise JaxlinError(f"Lens: expected a path that ends in {' or '.join(KINDS)}; found {out}.")
    if out.exists():
        raise JaxlinError(f"Lens: {out} is there already. Delete it or choose another path.")
    if not out.parent.is_dir():
        raise JaxlinError(f"Lens: expected a directory {out.parent}; found none.")
    return out


def replaced(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a new file, then give it the name of `path`.

    Raises:
        JaxlinError: it cannot be written.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}")  # another process may be writing the same
    try:
        write(fresh)
        os.replace(fresh, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JaxlinError(f"Lens: {path} cannot be written: {reason}.") from error
    finally:
        fresh.unlink(missing_ok=True)
