r"""Exact additive attribution: what each part of the input, and each part of the model, contributes to a logit.

Two lists of one value $u \cdot f(x)$, both exact. Over the input, $\sum_t u \cdot J_t x_t + u \cdot b$: everything that
a token's embedding brings, by whatever path. Over the model, the parts that are added to the residual stream at the
position read, each through the held final norm: the direct path alone (logit attribution; Elhage et al., "A
Mathematical Framework for Transformer Circuits", 2021).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Array, Float

from jaxlin.arguments import check_model
from jaxlin.brief import Brief
from jaxlin.contributions import contributions
from jaxlin.decoder import Decoder
from jaxlin.errors import JaxlinError
from jaxlin.held import rule_of
from jaxlin.hold import Rule
from jaxlin.leaf import Leaf
from jaxlin.sites import position_in
from jaxlin.targets import Target, Words, checked_target, without_words
from jaxlin.tokenizer import Tokenizer

NEURONS = 20
"""How many neurons `attribute` names unless told."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Neurons(Brief):
    """Hidden neurons of MLPs, those of the largest absolute contribution first.

    Attributes:
        layer: the block of each, ``[n]``.
        index: its place among the hidden features of the MLP, ``[n]``.
        contribution: what it contributes, ``[n]``.
    """

    layer: Leaf
    index: Leaf
    contribution: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    r"""$u \cdot f(x)$ for the direction $u$ that a target reads, taken apart in two ways.

    For a logit, $u$ is its row of the unembedding, times the held ratio where the model caps its logits.

    - By input: ``tokens.sum() + bias + set_aside == value``.
    - By part of the model, at the position read: ``embed + attn.sum() + mlp.sum() + final_bias == value``. In a layer
      ``heads[l].sum() + attn_bias[l] == attn[l]``, and all its neurons and ``mlp_bias[l]`` sum to ``mlp[l]``.

    What attention and MLPs contribute is measured after any norm that follows them, where it is added to the stream.

    A pytree: out of `jax.vmap` every field has the batch before its own axes, and ``jax.tree.map(lambda a: a[i], ...)``
    is one of it.

    Attributes:
        value: the logit, difference of logits or $u \cdot f(x)$, from the forward pass.
        tokens: the contribution $u \cdot J_t x_t$ of each input token, ``[t]``.
        bias: the contribution $u \cdot b$ of all additive biases, that of the unembedding included.
        embed: the contribution of the embedding at the position itself.
        attn: the contribution of each layer's attention, ``[layers]``.
        mlp: the contribution of each layer's MLP, ``[layers]``.
        heads: the contribution of each query head, ``[layers, h]``.
        neurons: the MLP neurons of the largest absolute contribution.
        attn_bias: what of `attn` is no head's: the bias of the output projection, ``[layers]``.
        mlp_bias: what of `mlp` is no neuron's: the bias of the last projection, ``[layers]``.
        final_bias: what is added after the last block: the biases of the final norm and of the unembedding.
        set_aside: what `exclude_first` took from `tokens`; else 0.
        sources: what each query head brings from each position, ``[layers, h, t]``: ``sources[l, h].sum() ==
            heads[l, h]``. None unless asked for.
    """

    value: Leaf
    tokens: Leaf
    bias: Leaf
    embed: Leaf
    attn: Leaf
    mlp: Leaf
    heads: Leaf
    neurons: Neurons
    attn_bias: Leaf
    mlp_bias: Leaf
    final_bias: Leaf
    set_aside: Leaf = 0.0
    sources: Leaf = None

    @property
    def defect(self) -> float:
        """How far `tokens`, `bias` and `set_aside` miss `value`, relative to the largest of them all."""
        return _defect(self.value, [*self.tokens.tolist(), self.bias, self.set_aside])

    @property
    def component_defect(self) -> float:
        """How far `embed`, `attn`, `mlp` and `final_bias` miss `value`, relative to the largest of them all."""
        return _defect(self.value, [self.embed, *self.attn.tolist(), *self.mlp.tolist(), self.final_bias])

    @property
    def shares(self) -> Float[np.ndarray, " t"]:
        r"""$c_t / \sum_s |c_s|$ of the tokens' contributions: signed, their absolute values sum to one.

        Not shares of the value: contributions of both signs may cancel in it. All zero where all contributions are.
        """
        strength = np.abs(self.tokens).sum()
        return self.tokens / strength if strength else np.zeros_like(self.tokens)

    def __repr__(self) -> str:
        shape = np.shape(self.heads)
        if len(shape) != 2 or isinstance(self.value, jax.core.Tracer):
            return f"Attribution(heads of shape {shape})"
        sizes = f"tokens={len(self.tokens)}, layers={shape[0]}, heads={shape[1]}, neurons={len(self.neurons.layer)}"
        return f"Attribution(value={self.value:.4f}, {sizes}, defect={self.defect:.0e})"

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON: arrays as nested lists."""
        return jax.tree.map(lambda a: np.asarray(a).tolist(), asdict(self))

    def _repr_html_(self) -> str:
        """Two small tables, in a notebook."""
        from jaxlin.report import tables

        return tables(self)

    def exclude_first(self) -> "Attribution":
        """The same with the first token set aside: its contribution stands in `set_aside`, and 0 in its place.

        Many models park attention on the first token, whose contribution then dwarfs the others. `shares` are those
        among the tokens that are left. Both lists still sum to the value.

        Raises:
            JaxlinError: the first token is the only one.
        """
        if len(self.tokens) < 2:
            raise JaxlinError("Attribution: expected two tokens or more, to set the first aside; found one.")
        tokens = np.concatenate([np.zeros_like(self.tokens[:1]), self.tokens[1:]])
        return replace(self, tokens=tokens, set_aside=self.set_aside + float(self.tokens[0]))


def _defect(value: float, contributions: Sequence[float]) -> float:
    scale = max(map(abs, (value, *contributions)))
    return abs(sum(contributions) - value) / scale if scale else 0.0


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
    recompute: bool = False,
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
        recompute: keep the stream that enters each block instead of its factors, see `jaxlin.coefficients`.

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
    read = checked_target(model, without_words(model, tokenizer, target, x, at), x.dtype)
    parts: dict[str, Any] = contributions(model, x, at, read, chosen, neurons, sources, recompute)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(parts)):
        parts = {name: a if a.ndim else float(a) for name, a in jax.device_get(parts).items()}
    layer, index = divmod(parts.pop("neurons"), config.intermediate_size)
    return Attribution(neurons=Neurons(layer, index, parts.pop("largest")), **parts)
