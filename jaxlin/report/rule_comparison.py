"""The contributions of the tokens under each freeze rule: the map is not unique, and a reader should see how much."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlin import plots
from jaxlin.attribution.logit import attribute
from jaxlin.attribution.result import Attribution
from jaxlin.linearize.targets import Target
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import RULES
from jaxlin.nn.prompt import Embeddings
from jaxlin.results import Result

SAME = 1e-4
"""Contributions that differ by less, relative to the largest, are those of a model on which the rule has no effect."""


@dataclass(frozen=True, eq=False)
class RuleContributions(Result):
    """The contributions to the logit under one freeze rule.

    Attributes:
        rule: the freeze rule.
        contributions: of each token of the prompt, ``[t]``.
        bias: the contribution of all additive biases.
    """

    rule: str
    contributions: list[float]
    bias: float

    def _draw(self, ax: Any) -> None:
        """Bars of the contributions."""
        names = self._labels("position", len(self.contributions))
        plots.token_bars(ax, {"contribution": np.array(self.contributions)}, names)
        plots.write(ax, title=f"Under the rule {self.rule}", ylabel="contribution")


def compare_rules(
    model: Decoder, x: Embeddings, target: Target, position: int, explained: Attribution
) -> list[RuleContributions]:
    """The contributions under the rule of the model, `explained`, and under the other rules of jaxlin.

    There are none where all rules agree, as in a model without gated MLPs.
    """
    own = model.rule if isinstance(model.rule, str) else repr(model.rule)
    by_rule = {own: explained}
    for rule in RULES:
        if rule != own:
            by_rule[rule] = attribute(model, x, target, position=position, rule=rule, neurons=1)
    tokens = np.array([each.tokens for each in by_rule.values()])
    if np.abs(tokens - tokens[0]).max() <= SAME * np.abs(tokens).max():
        return []
    return [
        RuleContributions(rule, each.tokens.tolist(), each.bias)
        for rule, each in sorted(by_rule.items(), key=lambda pair: [*RULES, pair[0]].index(pair[0]))
    ]
