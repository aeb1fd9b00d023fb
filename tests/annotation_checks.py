"""Annotations as checks while the tests run: what jaxtyping's import hook applies to each function of the package."""

import collections
from collections.abc import Callable
from typing import Any

import beartype

_checks: dict[Any, list[tuple[dict[str, Any], Callable[..., Any]]]] = collections.defaultdict(list)


def checked_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype.beartype`, which builds the check of `function` at the first call, and one for all that are equal.

    To build a check takes milliseconds, and a function within another is decorated each time that the outer one runs:
    that was a third of the time in which a model is loaded or traced. jaxtyping passes functions that have only the
    signature of those in the package, and so no variables of their own.
    """
    check: Callable[..., Any] | None = None

    def with_check(*args: Any, **kwargs: Any) -> Any:
        nonlocal check
        check = check or _check_of(function)
        return check(*args, **kwargs)

    return with_check


def _check_of(function: Any) -> Callable[..., Any]:
    """The check of the functions that have this signature; annotations are compared, as not all can be hashed."""
    defaults = len(function.__defaults__ or ()), *(function.__kwdefaults__ or ())
    known = _checks[function.__module__, function.__code__, defaults]
    annotations = function.__annotations__
    check = next((each for others, each in known if others == annotations), None)
    if check is None:
        check = beartype.beartype(function)
        known.append((annotations, check))
    return check
