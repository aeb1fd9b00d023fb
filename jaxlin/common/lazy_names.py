"""Names of a package that are imported when they are first used, as PEP 562 allows.

A package whose ``__init__.py`` imports all that it offers takes as long to import as all of it, also for one name.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package, which import a name of `modules` at its first use.

    Modules of the package itself are attributes of it too, as if each were imported.

    Args:
        package: the name of the package, its ``__name__``.
        modules: the names that the package offers, by the module that they are imported from. Type checkers read them
            from imports under ``TYPE_CHECKING``; a test compares the two.
    """
    sources = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name in sources:
            value = getattr(importlib.import_module(sources[name]), name)
            setattr(sys.modules[package], name, value)  # the next use finds it there
            return value
        if not name.startswith("_"):
            try:
                return importlib.import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{package}.{name}":
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *sys.modules[package].__all__})

    return load, listed
