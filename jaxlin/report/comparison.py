"""`compare`: one logit after two prompts, taken apart in the same way, and the differences."""

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from jaxlin import plots
from jaxlin.attribution.logit import attribute
from jaxlin.attribution.result import Attribution
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.common.token_names import joined, token_names
from jaxlin.linearize.targets import Target, ids_of_words
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import PromptError
from jaxlin.results import Result, html, traced_to
from jaxlin.tokenizer import Tokenizer, require_tokenizer


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """The same logit, or difference of two logits, after two prompts, as exact sums of contributions.

    Tokens that both prompts have in the same order stand in one row, and so do those that replace one another. In each
    prompt ``contributions.sum() + bias == logit``, without the NaN of the tokens that it lacks.

    Attributes:
        target: the token whose logit is compared.
        over: the token whose logit is subtracted from it; None if none is.
        tokens: the tokens of both prompts, row by row; None where a prompt has none in the row.
        contributions: of each token, in the two prompts, ``[n, 2]``; NaN where a prompt has no token in the row.
        bias: the contribution of all additive biases, in the two prompts, ``[2]``.
        logit: the logit, or the difference of two, after the two prompts, ``[2]``.
        probability: of the target as the next token, ``[2]``.
        defect: the error of the two sums, relative to the largest term, ``[2]``.
        attn: the contribution of each layer's attention at the last token, ``[2, layers]``.
        mlp: the contribution of each layer's MLP, ``[2, layers]``.
        heads: the contribution of each head, ``[2, layers, h]``; NaN where a layer has fewer heads than another.
    """

    AXES: ClassVar = {
        "contributions": ("row", "side"),
        **dict.fromkeys(("bias", "logit", "probability", "defect"), ("side",)),
        **dict.fromkeys(("attn", "mlp"), ("side", "layer")),
        "heads": ("side", "layer", "head"),
    }

    target: str
    over: str | None
    tokens: list[tuple[str | None, str | None]]
    contributions: Float[np.ndarray, "n 2"]
    bias: Float[np.ndarray, "2"]
    logit: Float[np.ndarray, "2"]
    probability: Float[np.ndarray, "2"]
    defect: Float[np.ndarray, "2"]
    attn: Float[np.ndarray, "2 l"]
    mlp: Float[np.ndarray, "2 l"]
    heads: Float[np.ndarray, "2 l h"]

    @property
    def prompts(self) -> tuple[str, str]:
        """The two prompts as text."""
        first, second = (joined([row[side] or "" for row in self.tokens]) for side in range(2))
        return first, second

    @property
    def names(self) -> list[tuple[str, str]]:
        """The names of the tokens of each row, see `jaxlin.common.token_names`; empty where a prompt has none."""
        named = [
            iter(token_names([row[side] or "" for row in self.tokens if row[side] is not None])) for side in (0, 1)
        ]
        return [(*("" if row[side] is None else next(named[side]) for side in (0, 1)),) for row in self.tokens]  # type: ignore[misc]

    @property
    def subject(self) -> str:
        """The number that is compared: a logit, or the difference of two."""
        target, *over = (token_names([token])[0] for token in (self.target, self.over) if token is not None)
        return f"the logit of {target}" + "".join(f" minus that of {each}" for each in over)

    @property
    def differences(self) -> Float[np.ndarray, " n"]:
        """The second contribution of each row minus the first; a token that a prompt lacks contributes 0."""
        first, second = np.nan_to_num(self.contributions).T
        return second - first

    def tables(self) -> list[dict[str, Any]]:
        """A row for each pair of tokens, with their contributions and the second minus the first."""
        columns = zip(*self.tokens, strict=True)
        texts = dict(zip(("first token", "second token"), map(list, columns), strict=True))
        first, second = self.contributions.T
        return [{**texts, "first": first, "second": second, "difference": self.differences}]

    def largest_heads(self, count: int) -> list[tuple[int, int, float, float]]:
        """The heads whose contributions differ most: of each the layer, the head, and the contributions."""
        change = np.nan_to_num(np.abs(self.heads[1] - self.heads[0]))
        order = np.argsort(-change, axis=None)[:count]
        pairs = zip(*np.unravel_index(order, change.shape), strict=True)
        return [(int(i), int(j), *map(float, self.heads[:, i, j])) for i, j in pairs]  # type: ignore[misc]

    def _draw(self, ax: Any) -> None:
        """Bars of the contributions to both, side by side over the text."""
        labels = [first if first == second or not second else second if not first else f"{first}/{second}"
                  for first, second in self.names]  # fmt: skip
        has_bias = bool(np.any(self.bias))
        values = np.concatenate([self.contributions, self.bias[None]])[: len(labels) + has_bias]
        names = ("first prompt", "second prompt")
        plots.token_bars(ax, dict(zip(names, values.T, strict=True)), [*labels, *["b"] * has_bias])
        numbers = " and ".join(f"{value:.3f}" for value in self.logit)
        plots.write(ax, title=f"Contributions to {self.subject} ({numbers})", ylabel="contribution")

    def _repr_html_(self) -> str:
        """The two prompts, the logits, and a row for each pair of tokens."""
        prompts = "<br>".join(html.span(prompt) for prompt in self.prompts)
        names = dict(zip(("first prompt", "second prompt"), map(list, zip(*self.names, strict=True)), strict=True))
        table = {name: column for name, column in self.tables()[0].items() if not name.endswith(" token")}
        logits = " and ".join(f"<b>{html.number(float(value), '+')}</b>" for value in self.logit)
        return (
            f"{html.heading(self)}<p>{prompts}</p><p>{html.span(self.subject)}: {logits}; the biases contribute "
            f"{' and '.join(html.number(float(value), '+') for value in self.bias)}</p>"
            + html.rows(self, {**names, **table})
        )


@checked
def compare(
    model: Decoder,
    tokenizer: Tokenizer | None,
    first: str | Sequence[int],
    second: str | Sequence[int],
    *,
    target: str | int | None = None,
    over: str | int | None = None,
    prepend_bos: bool | None = None,
) -> Comparison:
    """Take the logit of one target after two prompts apart, and compare.

    Args:
        model: any decoder; the contributions are those of its freeze rule.
        tokenizer: its tokenizer.
        first: a prompt, or its token ids.
        second: another prompt.
        target: the word whose logit is compared, or its id; by default the likeliest next token after the first prompt.
            The word must be one token, as written or with a space before it; the spelling is that which is likelier
            after the first prompt.
        over: another word, or its id: the difference of the two logits is compared.
        prepend_bos: whether the prompts begin with BOS; by default as the tokenizer does.

    Raises:
        PromptError: a prompt is empty, longer than the model's context, or has ids that the model does not have.
        TokenizerError: the target is not one token; or BOS is requested and there is none.
        JaxlinError: an id is no token's, or `over` is the target.
    """
    check_not_traced("Comparison", model)
    tokenizer = require_tokenizer(tokenizer, "A comparison")
    if not len(first) or not len(second):
        raise PromptError("Prompts: expected two texts of one token or more; found none.")
    ids = [tokenizer.encode(each, prepend_bos) if isinstance(each, str) else list(each) for each in (first, second)]
    embedded = [model.embed(each) for each in ids]
    logits = [np.asarray(model.unembed(model(x)[-1]), np.float64) for x in embedded]
    word = int(np.argmax(logits[0])) if target is None else target
    target_ids = ids_of_words(tokenizer, (word,) if over is None else (word, over), logits[0])
    if over is not None and target_ids[0] == target_ids[1]:
        raise JaxlinError(
            f"Over: expected another word than the target; found {quoted(tokenizer.token(target_ids[0]))} for both."
        )
    attributed: Target = target_ids[0] if over is None else (target_ids[0], target_ids[1])
    parts = [attribute(model, x, attributed) for x in embedded]
    shares = [np.exp(each - each.max()) / np.exp(each - each.max()).sum() for each in logits]
    rows = _aligned(*ids)
    tokens = [tokenizer.to_str_tokens(each) for each in ids]
    comparison = Comparison(
        target=tokenizer.token(target_ids[0]),
        over=None if over is None else tokenizer.token(target_ids[1]),
        tokens=[_pick(tokens, row) for row in rows],
        contributions=np.array([_pick([each.tokens for each in parts], row, np.nan) for row in rows]),
        bias=_both(parts, "bias"),
        logit=_both(parts, "value"),
        probability=np.array([share[target_ids[0]] for share in shares]),
        defect=_both(parts, "defect"),
        attn=_both(parts, "attn"),
        mlp=_both(parts, "mlp"),
        heads=_both(parts, "heads"),
    )
    return traced_to(comparison, model, tokenizer=tokenizer, target=target_ids)


def _both(parts: Sequence[Attribution], name: str) -> np.ndarray:
    return np.stack([np.asarray(getattr(each, name), np.float64) for each in parts])


def _pick(values: Sequence[Any], row: tuple[int | None, int | None], absent: Any = None) -> tuple[Any, Any]:
    """The entry of each of two lists that belongs to a row."""
    first, second = (absent if at is None else each[at] for each, at in zip(values, row, strict=True))
    return first, second


def _aligned(first: Sequence[int], second: Sequence[int]) -> list[tuple[int | None, int | None]]:
    """The positions of two prompts, row by row: equal tokens beside each other, and what replaces one another."""
    rows: list[tuple[int | None, int | None]] = []
    for _, a, b, c, d in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        rows += itertools.zip_longest(range(a, b), range(c, d))
    return rows
