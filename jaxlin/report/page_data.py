"""The data of the page: an explanation with its tokens made visible, and as little of it as the figures need."""

from importlib.metadata import version
from typing import Any

from jaxlin.common.printable import finite
from jaxlin.common.token_names import token_names, visible
from jaxlin.report.explanation import Explanation

PROBABILITY_DIGITS = 3
"""Digits of probabilities, of which a long prompt has tens of thousands."""


def contents(explanation: Explanation, name: str | None) -> dict[str, Any]:
    """The data that the script draws: the explanation with its tokens made visible, the model's name, the versions."""
    data = explanation.values()
    data["tokens"] = explanation.names
    data["before"], data["after"] = map(plain_text, (explanation.prompt, explanation.rest))
    data["target"] = _name(explanation.target)
    data["over"] = None if explanation.over is None else _name(explanation.over)
    data["next_tokens"] = [(_name(token), probability) for token, probability in explanation.next_tokens]
    for triplet in data["triplets"]:
        triplet["promotes"], triplet["demotes"] = (
            [_name(word) for word in triplet[pole]] for pole in ("promotes", "demotes")
        )
        triplet["reads"] = [
            (visible(token), share, [_name(word) for word in near]) for token, share, near in triplet["reads"]
        ]
    detail = data.get("detail") or {}
    for readings in detail.get("readings", []):
        for reading in readings:
            for pole in ("near", "opposite"):
                reading[pole] = [_name(word) for word in reading[pole]]
    for node in (detail.get("circuit") or {}).get("nodes", []):
        node["promotes"] = [_name(word) for word in node["promotes"]]
    # The same few words stand in most cells of a lens: each is written once, and its number in the cells.
    numbers: dict[str, int] = {}
    for lens in detail.get("lenses", []):
        lens["words"] = [
            [[numbers.setdefault(word, len(numbers)) for word in cell] for cell in row] for row in lens["words"]
        ]
        lens["probabilities"] = finite(lens["probabilities"], digits=PROBABILITY_DIGITS)
    data["words"] = [_name(word) for word in numbers]
    data["name"] = name
    data["versions"] = {package: version(package) for package in ("jaxlin", "jax", "flax", "numpy")}
    return data


def plain_text(text: str) -> str:
    """`text` without control characters and direction marks, which would change how the text around it is shown."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _name(token: str) -> str:
    """The name of a token that stands alone."""
    return token_names([token])[0]
