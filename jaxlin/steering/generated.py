"""`Generation`: a prompt, and the tokens that a model has continued it with."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from jaxlin import plots
from jaxlin.common.errors import JaxlinError
from jaxlin.common.token_names import token_names
from jaxlin.results import Result, html


@dataclass(frozen=True, eq=False)
class Generation(Result):
    """A continued prompt.

    Attributes:
        prompt: the token ids of the prompt.
        tokens: the new token ids, including the one that ended the text if there was one.
        stopped: whether a stop token ended the text.
        text: the new text, without special tokens.
        logits: the logits that each new token was sampled from, ``[n, vocab]``, before the temperature; None unless
            ``return_logits=True``.
    """

    AXES: ClassVar = {"tokens": ("step",)}
    COLUMNS: ClassVar = {"tokens": "id"}
    IDS: ClassVar = ("tokens",)

    prompt: list[int]
    tokens: list[int]
    stopped: bool
    text: str
    logits: Float[np.ndarray, "n vocab"] | None

    @property
    def probabilities(self) -> Float[np.ndarray, " n"] | None:
        """The probability of each new token, before the temperature; None without logits."""
        if self.logits is None:
            return None
        shifted = np.asarray(self.logits, np.float64) - np.max(self.logits, axis=-1, keepdims=True)
        of_tokens = shifted[np.arange(len(self.tokens)), self.tokens]
        return np.exp(of_tokens) / np.exp(shifted).sum(-1)

    def tables(self) -> list[dict[str, Any]]:
        """A row for each new token, with its probability if there are logits."""
        tables = super().tables()
        if (probabilities := self.probabilities) is not None:
            tables[0]["probability"] = probabilities
        return tables

    def _draw(self, ax: Any) -> None:
        """The probability of each new token, over the text."""
        probabilities = self.probabilities
        if probabilities is None:
            raise JaxlinError("Plot: expected a generation with logits; found none: pass return_logits=True.")
        words = [self._word(token) for token in self.tokens]
        plots.token_bars(ax, {"probability": probabilities}, token_names(words))
        plots.write(ax, title=self.text, ylabel="probability")

    def _repr_html_(self) -> str:
        """The new text."""
        return html.heading(self) + f"<p>{html.span(self.text)}</p>"
