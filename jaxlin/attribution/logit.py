r"""Exact additive attribution: what each part of the input, and each part of the model, contributes to a logit.

Two lists of one value $u \cdot f(x)$, both exact. Over the input, $\sum_t u \cdot J_t x_t + u \cdot b$: everything that
a token's embedding brings, by whatever path. Over the model, the parts that are added to the residual stream at the
position read, each through the held final norm: the direct path alone (logit attribution; Elhage et al., "A
Mathematical Framework for Transformer Circuits", 2021).
"""

from typing import Any

import jax
import jax.core
from jaxtyping import Array, Float

from jaxlin.attribution.components import contributions
from jaxlin.attribution.result import Attribution, Neurons
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.frozen import rule_of
from jaxlin.linearize.targets import Target, Words, resolve_target
from jaxlin.nn.arguments import check_model
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.sites import position_in
from jaxlin.tokenizer import Tokenizer

NEURONS = 20
"""How many neurons `attribute` names unless told."""


def attribute(
    model: Decoder,
    x: Float[Array, "t d"],
    target: Target | Words,
    *,
    position: int = -1,
    rule: Rule | str | None = None,
    neurons: int = NEURONS,
    sources: bool = False,
    tokenizer: Tokenizer | None = None,
    remat: bool = False,
) -> Attribution:
    """The exact contribution of each input token, layer, head and neuron, and of the biases, to the logit of `target`.

    One forward pass that records, and one backward pass of what it held. It may be taken within `jax.jit`, `jax.vmap`
    and `jax.grad`, and over targets that are no words; of those only the shape is checked then.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        target: a token id, a pair of ids for the difference of their logits, or a direction ``[d]``. With a
            `tokenizer` also a word or a pair of words, ``("Paris", "Rome")``: each must be one token, as written or
            with a space before it, and the likelier of the two is taken.
        position: where the logit is read; negative counts from the last token.
        rule: the freeze rule of gated MLPs; the model's own unless given. Contributions of tokens depend on it, those
            of layers, heads and neurons do not.
        neurons: how many neurons are named.
        sources: whether to tell from which positions each head brings what it contributes: a pass more.
        tokenizer: the model's, to read words with.
        remat: keep the stream that enters each block instead of its factors, see `jaxlin.freeze`.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: a target outside the vocabulary, a pair of equal ones, more neurons than there are, or no such
            rule.
        SiteError: no such position.
        TokenizerError: a word that is not one token.
    """
    check_model(model)
    config = model.config
    hidden = config.num_hidden_layers * config.intermediate_size
    if not 0 <= neurons <= hidden:
        raise JaxlinError(f"Neurons: expected a number in 0..{hidden}; found {neurons}.")
    model.check_embeddings(x)
    at, chosen = position_in(x.shape[0], position), rule_of(model, rule)
    read = resolve_target(model, target, x, at, tokenizer)
    parts: dict[str, Any] = contributions(model, x, at, read, chosen, neurons, sources, remat)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(parts)):
        parts = {name: a if a.ndim else float(a) for name, a in jax.device_get(parts).items()}
    layer, index = divmod(parts.pop("neurons"), config.intermediate_size)
    return Attribution(neurons=Neurons(layer, index, parts.pop("largest")), **parts)
