"""Text of strangers, fit to print: no control or direction marks, no lone surrogates, no value without an end."""

import copy
import io
import json
import logging
import math
import pickle
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jaxlin.common.errors import CheckpointError, JaxlinError
from jaxlin.common.printable import (
    MAX_MESSAGE_LENGTH,
    MAX_VALUE_LENGTH,
    finite,
    json_text,
    printable,
    quoted,
    with_article,
)
from jaxlin.report.explanation import Explanation, Triplet
from jaxlin.report.paper.markdown import escaped
from jaxlin.report.terminal import show

MARKS = [
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\u202e",
    "\u2066",
    "\u2028",
    "\ud800",
    "\r",
    "\0",
    "\x7f",
    "\ufeff",
]
TEXTS = st.text() | st.text(st.sampled_from([chr(n) for n in range(0x300)] + MARKS[3:]), max_size=40)


def fit(text: str) -> bool:
    """Whether a terminal shows the text as it stands, and does nothing else."""
    return all(c.isprintable() or c == "\n" for c in text)


def test_articles() -> None:
    for name in ("Add", "int", "SVD", "Attribution", "ExactLens", "MemoryError", "NNX", "Upper"):
        assert with_article(name) == f"{'a' if name == 'MemoryError' else 'an'} {name}"
    for name in ("Tokenizer", "str", "UnitPatching", "PackedMatrix", "Use", "GGUF", "list"):
        assert with_article(name) == f"a {name}"


@given(TEXTS)
def test_text(text: str) -> None:
    shown = printable(text)
    assert fit(shown)
    assert printable(shown) == shown
    assert shown.encode("utf-8").decode() == shown
    if fit(text):
        assert shown == text


def test_how_it_is_written() -> None:
    assert printable("a\x1b[31m\u202eb\ud800\nc\U000e0001") == "a\\x1b[31m\\u202eb\\ud800\nc\\U000e0001"
    assert printable("naïve 世界 🌉 ▁é") == "naïve 世界 🌉 ▁é"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(VALUES)
def test_values(value: Any) -> None:
    shown = quoted(value)
    assert fit(shown)
    assert "\n" not in shown
    assert len(shown) <= MAX_VALUE_LENGTH
    if len(repr(value)) < 30 and repr(value).count("(") + repr(value).count("[") < 4:
        # The keys of a dictionary are shown in their order, wherever it is.
        assert printable(repr(value)) == shown or isinstance(value, int) or "{" in repr(value)


class Broken:
    """What cannot be shown."""

    def __repr__(self) -> str:
        raise KeyError


def deep(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [deep(100_000), [0] * 10**6, {n: n for n in range(10**6)}, "a" * 10**8, b"a" * 10**8, 10**200_000, -(10**200_000)]
    + [Broken(), {"a": Broken()}, [["a" * 1000] * 1000] * 1000],
    ids=lambda value: type(value).__name__,
)
def test_values_without_an_end(value: Any) -> None:
    before = time.perf_counter()
    assert 1 < len(quoted(value)) <= MAX_VALUE_LENGTH
    assert time.perf_counter() - before < 0.5


@pytest.mark.parametrize("mark", MARKS)
def test_errors(mark: str) -> None:
    error = CheckpointError(f"{mark}x.safetensors: " + mark * 5000 + ": download it again.")
    assert fit(str(error))
    assert len(str(error)) <= MAX_MESSAGE_LENGTH
    assert str(error).endswith("download it again.")
    assert "x.safetensors" in str(error)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is CheckpointError
        assert str(again) == str(error)


@given(VALUES)
def test_json(value: Any) -> None:
    if isinstance(value, bytes) or "b'" in repr(value) or 'b"' in repr(value):
        return
    text = json_text(finite(value), indent=1)
    assert fit(text)
    assert json.loads(text) == json.loads(json.dumps(finite(value)))


def test_json_has_no_infinity() -> None:
    assert json.loads(json_text(finite({"a": [math.nan, (math.inf, 1.0)]}))) == {"a": [None, [None, 1.0]]}
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text(math.nan)


@pytest.mark.parametrize("token", ["[/INST]", "[link=https://a.b]x", "[red]", *MARKS, "\\[a]", ":smile:"])
def test_tokens_in_a_terminal(token: str) -> None:
    words = [token], [token], [(token, 1.0, [token])]
    result = Explanation(
        tokens=[token, "b"],
        position=0,
        rule="gate",
        dtype="float32",
        next_tokens=[(token, 1.0)],
        residual=0.0,
        target=token,
        over=token,
        logit=1.0,
        probability=0.5,
        probability_of_over=0.25,
        contributions=[1.0, 0.0],
        bias=0.0,
        defect=0.0,
        spectrum="krylov",
        triplets=[Triplet(1.0, *words)],
        ranks=None,
        ranks_without_first=None,
    )
    out = io.StringIO()
    show(result, Console(file=out, width=200, highlight=False))
    assert fit(out.getvalue())
    if fit(token):
        assert f"logitof{token}minusthatof{token}(1.0000)" in "".join(out.getvalue().split())


def test_logs(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("jaxlin").warning("%s: left out %d tensors", "a\x1b[31m\u202e", 3)
    assert caplog.messages == ["a\\x1b[31m\\u202e: left out 3 tensors"]


def test_captions_of_the_paper() -> None:
    assert escaped("a\x1b[31m|\u202e") == "a\\\\x1b\\[31m\\|\\\\u202e"


def test_the_base_class_is_a_value_error() -> None:
    assert issubclass(JaxlinError, ValueError)
    assert JaxlinError().args == ()
