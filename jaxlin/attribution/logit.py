r"""Exact additive attribution: the contribution of each part of the input, and of each part of the model, to a logit.

Two different sums are both equal to the value $u \cdot f(x)$. The sum over the input, $\sum_t u \cdot J_t x_t +
u \cdot b$, counts all paths from each token's embedding. The sum over the model counts what each part adds to the
residual stream at the position of the logit, through the frozen final norm: the direct path alone (logit attribution;
Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021).
"""

from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Float

from jaxlin.attribution.components import contributions
from jaxlin.attribution.result import Attribution
from jaxlin.common.arguments import checked
from jaxlin.linearize.frozen import rule_of
from jaxlin.linearize.targets import Target, Words, resolve_target
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import position_in
from jaxlin.results import traced_to
from jaxlin.tokenizer import Tokenizer

DEFAULT_NEURONS = 20
"""The number of neurons that `attribute` returns by default."""


@checked
def attribute(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    target: Target | Words,
    *,
    position: int = -1,
    rule: Rule | str | None = None,
    neurons: int = DEFAULT_NEURONS,
    sources: bool = False,
    tokenizer: Tokenizer | None = None,
    remat: bool = False,
) -> Attribution:
    """The exact contribution of each input token, layer, head and neuron, and of the biases, to the logit of `target`.

    This takes one forward pass, which records the frozen factors, and one backward pass. It works within `jax.jit`,
    `jax.vmap` and `jax.grad`. A target may be traced too unless it is a word, and only its shape is checked then.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        target: a token id, a pair of ids for the difference of their logits, or a direction ``[d]``. With a
            `tokenizer` also a word or a pair of words, ``("Paris", "Rome")``. Each must be one token, as written or
            with a space before it; where both are tokens, the likelier one is the target.
        position: the position of the logit; a negative one counts from the last token.
        rule: the freeze rule of gated MLPs, by default the model's own. The contributions of tokens depend on it, those
            of layers, heads and neurons do not.
        neurons: the number of neurons to return, those with the largest absolute contributions.
        sources: whether to split the contribution of each head by the position attended to, which takes one more pass.
        tokenizer: the model's tokenizer, which encodes words.
        remat: store the stream that enters each block instead of the block's factors, see `jaxlin.freeze`.

    Raises:
        PromptError: `x` does not have the shape ``[t, d]``.
        JaxlinError: the target is not in the vocabulary or is a pair of equal tokens, the model has fewer neurons, or
            there is no such rule.
        SiteError: there is no such position.
        TokenizerError: a word is not one token.
    """
    prompt, x = x, model.check_embeddings(x)
    position, rule = position_in(x.shape[0], position), rule_of(model, rule)
    resolved = resolve_target(model, target, x, position, tokenizer)
    parts: dict[str, Any] = contributions(model, x, position, resolved, rule, neurons, sources, remat)
    if not any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(parts)):
        parts = jax.device_get(parts)
        parts = {
            name: float(part) if isinstance(part, np.ndarray | np.generic) and not part.ndim else part
            for name, part in parts.items()
        }
    settings = {"target": resolved, "position": position, "rule": rule}
    return traced_to(Attribution(**parts), model, prompt, tokenizer=tokenizer, **settings)
