"""`checked`: a function whose arguments are compared with its annotations before anything is computed.

The annotations say what a function takes, so that an argument in a wrong place, a text for a model or a list for an
array is noticed in one place, with one message. Numbers and arrays of NumPy and JAX are accepted where the annotation
names Python's or NumPy's, and become these. What an annotation does not say, such as which sites a model has, each
function checks itself. A name that is missing or unknown raises Python's own TypeError.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.core

from jaxlin.common.annotations import Check, Fault, check_of, described, is_integer
from jaxlin.common.conversions import Converter, converter_of
from jaxlin.common.errors import JaxlinError

P = ParamSpec("P")
R = TypeVar("R")

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")

PROMPTS = ("prompts", "towards", "away")
"""The names of arguments that are lists of prompts."""

OF_TOKEN_IDS = {
    **dict.fromkeys((*PROMPTS, "prompt", "text", "first", "second", "ids"), "tokenizer.encode(text) gives token ids."),
    **dict.fromkeys(("token", "tokens", "stop_token_ids"), "tokenizer.to_single_token(word) gives the id of a word."),
}
"""What to do with a text where token ids are expected, by the names of the arguments that take them."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which first refuses arguments of other kinds than its annotations name, and converts the others."""

    @functools.wraps(function)
    def with_checks(*args: P.args, **kwargs: P.kwargs) -> R:
        signature, checks, converters = _by_parameter(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # a name is missing or unknown, of which Python says more
            return function(*args, **kwargs)
        for name, value in bound.arguments.items():
            fault = checks[name](value) if name in checks else None
            if fault is not None:
                raise JaxlinError(_message(function.__name__, signature.parameters, name, fault))
        for name in converters.keys() & bound.arguments.keys():
            bound.arguments[name] = converters[name](bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

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
def _by_parameter(
    function: Callable[..., Any],
) -> tuple[inspect.Signature, dict[str, Check], dict[str, Converter]]:
    """The signature of a function, and the check and the conversion of each argument that has one."""
    signature = inspect.signature(function)
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    annotations = {name: each.annotation for name, each in signature.parameters.items() if each.kind not in variable}
    checks = {name: check for name, each in annotations.items() if (check := check_of(each)) is not None}
    converters = {name: convert for name, each in annotations.items() if (convert := converter_of(each)) is not None}
    return signature, checks, {name: convert for name, convert in converters.items() if name in checks}


def _message(function: str, parameters: Any, name: str, fault: Fault) -> str:
    index = [each for each in parameters if each != "self"].index(name)
    is_positional = parameters[name].kind != inspect.Parameter.KEYWORD_ONLY and index < len(ORDINALS)
    place = f", as the {ORDINALS[index]} argument" if is_positional and not fault.path else ""
    advice = _advice(name, fault)
    message = f"{function}, {name}{fault.path}: expected {fault.expected}{place}; found {described(fault.value)}."
    return f"{message} {advice}" if advice else message


def _advice(name: str, fault: Fault) -> str:
    """What to do: by the name of the argument where prompts or token ids are expected."""
    if name in PROMPTS and fault.path.count("[") == 1 and is_integer(fault.value):
        return "Put one prompt in a list too."
    if fault.advice or not isinstance(fault.value, str):
        return fault.advice
    return OF_TOKEN_IDS.get(name, "")
