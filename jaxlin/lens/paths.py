"""Where lenses are written."""

import os
from os import PathLike
from pathlib import Path
from typing import Any

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import path_exists
from jaxlin.common.printable import quoted

KINDS = (".safetensors", ".pt")
"""The files that a lens can be in."""


def a_path(name: Any) -> Path:
    """`name` as a path.

    Raises:
        JaxlinError: it is none.
    """
    if not isinstance(name, str | PathLike) or "\0" in os.fspath(name):
        raise JaxlinError(f"Lens: expected a path; found {quoted(name)}.")
    return Path(name)


def check_path(path: str | PathLike[str]) -> Path:
    """`path`, if a lens can be written there.

    Raises:
        JaxlinError: another kind of file, one that exists, or no such directory.
    """
    out = a_path(path)
    if out.suffix not in KINDS:
        raise JaxlinError(f"Lens: expected a path that ends in {' or '.join(KINDS)}; found {out}.")
    if path_exists(out):
        raise JaxlinError(f"Lens: {out} is there already. Delete it or choose another path.")
    if not out.parent.is_dir():
        raise JaxlinError(f"Lens: expected a directory {out.parent}; found none.")
    return out
