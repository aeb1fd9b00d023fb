"""What an attribution is: the value that is taken apart, and its parts in two ways."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Float

from jaxlin.common.arrays import Leaf, ShapesRepr
from jaxlin.common.errors import JaxlinError


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Neurons(ShapesRepr):
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
        return _tables(self)

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


def _tables(found: Attribution) -> str:
    """Both of its lists, each of which sums to the value: by input token, and by layer."""
    tokens = [(f"token {t}", value) for t, value in enumerate(found.tokens.tolist())]
    tokens += [("first token, set aside", found.set_aside)] if found.set_aside else []
    header = "<tr><th>layer</th><th>attention</th><th>MLP</th></tr>"
    layers = "".join(
        f"<tr><th>{layer}</th>{_cell(attn)}{_cell(mlp)}</tr>"
        for layer, (attn, mlp) in enumerate(zip(found.attn.tolist(), found.mlp.tolist(), strict=True))
    )
    ends = _row("embedding", found.embed, 2), _row("final biases", found.final_bias, 2)
    return (
        f"<p>value <b>{found.value:.4f}</b>; off by {found.defect:.0e} of the largest token's part, "
        f"{found.component_defect:.0e} of the largest layer's</p>"
        f"<table><tr><th>input</th><th>contribution</th></tr>"
        f"{''.join(_row(name, value) for name, value in tokens)}{_row('b, the biases', found.bias)}</table>"
        f"<table>{header}{ends[0]}{layers}{ends[1]}</table>"
    )


def _row(name: str, value: float, columns: int = 1) -> str:
    return f"<tr><th>{name}</th>{_cell(value, columns)}</tr>"


def _cell(value: float, columns: int = 1) -> str:
    span = f' colspan="{columns}"' if columns > 1 else ""
    return f'<td{span} style="text-align:right;font-variant-numeric:tabular-nums">{value:+.4f}</td>'
