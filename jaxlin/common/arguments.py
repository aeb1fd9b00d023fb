"""`checked`: a function whose arguments are compared with its annotations before anything is computed.

The annotations say what a function takes, so that an argument in a wrong place, a text for a model or a list for an
array is noticed in one place, with one message. What an annotation does not say, such as which sites a model has, each
function checks itself. A name that is missing or unknown raises Python's own TypeError.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.core

from jaxlin.common.annotations import Check, Fault, check_of, described
from jaxlin.common.errors import JaxlinError

P = ParamSpec("P")
R = TypeVar("R")

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which first refuses arguments of other kinds than its annotations name."""

    @functools.wraps(function)
    def with_checks(*args: P.args, **kwargs: P.kwargs) -> R:
        signature, checks = _checks(function)
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:  # a name is missing or unknown, of which Python says more
            return function(*args, **kwargs)
        for name, value in arguments.items():
            fault = checks[name](value) if name in checks else None
            if fault is not None:
                raise JaxlinError(_message(function.__name__, signature.parameters, name, fault))
        return function(*args, **kwargs)

    return with_checks


def check_not_traced(name: str, *values: Any) -> None:
    """Refuse arguments within a transform of JAX, for a function that returns NumPy arrays or runs a loop in Python.

    Args:
        name: the first word of the message.
        values: the arguments, pytrees.

    Raises:
        JaxlinError: one of them is traced.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
        raise JaxlinError(
            f"{name}: expected numbers; found values that are traced, within jax.jit, jax.vmap or jax.grad. It runs "
            "several compiled programs: call it outside of them, and once for each prompt."
        )


@functools.cache
def _checks(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Check]]:
    signature = inspect.signature(function)
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    checks = {
        name: check_of(each.annotation) for name, each in signature.parameters.items() if each.kind not in variable
    }
    return signature, {name: check for name, check in checks.items() if check is not None}


def _message(function: str, parameters: Any, name: str, fault: Fault) -> str:
    index = list(parameters).index(name)
    is_positional = parameters[name].kind != inspect.Parameter.KEYWORD_ONLY and index < len(ORDINALS)
    place = f", as the {ORDINALS[index]} argument" if is_positional and not fault.path else ""
    return f"{function}, {name}{fault.path}: expected {fault.expected}{place}; found {described(fault.value)}."
