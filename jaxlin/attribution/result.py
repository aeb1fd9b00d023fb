"""The result of an attribution: a value, and its contributions by input token and by part of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.core
import numpy as np
from jaxtyping import Float

from jaxlin import plots
from jaxlin.common.arrays import Leaf
from jaxlin.common.errors import JaxlinError
from jaxlin.results import Result, html


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Neurons(Result):
    """Hidden neurons of MLPs, the largest absolute contribution first.

    Attributes:
        layer: the layer of each neuron, ``[n]``.
        index: the index of each neuron among the hidden features of its MLP, ``[n]``.
        contribution: the contribution of each neuron, ``[n]``.
    """

    AXES: ClassVar = dict.fromkeys(("layer", "index", "contribution"), ("order",))
    COLUMNS: ClassVar = {"index": "neuron"}
    VALUE: ClassVar = "contribution"

    layer: Leaf
    index: Leaf
    contribution: Leaf

    def _draw(self, ax: Any) -> None:
        """Bars of the contributions."""
        pairs = zip(np.asarray(self.layer).tolist(), np.asarray(self.index).tolist(), strict=True)
        plots.bars(ax, self.contribution, [f"layer {layer}, neuron {index}" for layer, index in pairs])
        plots.write(ax, title="The largest neurons", xlabel="contribution")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Experts(Result):
    """The experts that the routers of a model have chosen, the weight of each, and its contribution.

    They are those at the position of the logit, or with an axis of tokens those of all tokens. At each layer
    ``contribution.sum(-1) + shared + bias`` is the contribution of the MLP.

    Attributes:
        layer: the layers that have a router, ``[m]``.
        index: the experts of a token in the order of the router, ``[m, k]`` or ``[m, t, k]``.
        weight: the weight that the router gave each, likewise.
        contribution: the contribution of each, without its last bias, likewise.
        shared: the contribution of all that every token passes through, as a shared expert, ``[m]`` or ``[m, t]``; None
            where there is nothing of the kind.
        bias: the contribution of the biases of the last projections, likewise.
    """

    LABELS: ClassVar = {"router": ("layer", "layer")}
    COLUMNS: ClassVar = {"index": "expert"}
    VALUE: ClassVar = "contribution"

    layer: Leaf
    index: Leaf
    weight: Leaf
    contribution: Leaf
    shared: Leaf
    bias: Leaf

    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the axes, among them the tokens if there is an axis of them."""
        tokens = ("position",) * (np.ndim(self.bias) - 1)
        of_experts = dict.fromkeys(("index", "weight", "contribution"), ("router", *tokens, "choice"))
        return {"layer": ("router",), **of_experts, **dict.fromkeys(("shared", "bias"), ("router", *tokens))}

    def _draw(self, ax: Any) -> None:
        """A heat map of the contributions: layer by place in the router's order, or summed, layer by token."""
        has_tokens = np.ndim(self.contribution) == 3
        values = np.sum(self.contribution, -1) if has_tokens else np.asarray(self.contribution)
        columns = self._labels("position" if has_tokens else "choice", values.shape[1])
        plots.heat_map(ax, values, self._labels("router", len(values)), columns)
        plots.write(ax, title="Contributions of the chosen experts", ylabel="layer")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    r"""The value $u \cdot f(x)$ for the direction $u$ of a target, as two exact sums of contributions.

    For a logit, $u$ is its row of the unembedding, times the frozen factor of the softcap where the model has one.

    - By input token: ``tokens.sum() + bias + set_aside == value``.
    - By part of the model, at the position of the logit: ``embed + attn.sum() + mlp.sum() + final_bias == value``, and
      ``per_layer.sum()`` or ``edits.sum()`` beside them where a model has per-layer embeddings or edits of its stream.
      In each layer ``heads[l].sum() + attn_bias[l] == attn[l]``, and all neurons and ``mlp_bias[l]`` sum to ``mlp[l]``.

    The contributions of attention and MLPs are those of their outputs as added to the residual stream, after any norm.

    This is a pytree: `jax.vmap` puts a batch axis first in every field, and ``jax.tree.map(lambda a: a[i], ...)`` takes
    attribution `i` out of the batch.

    Attributes:
        value: the logit, difference of logits or $u \cdot f(x)$, from the forward pass.
        tokens: the contribution $u \cdot J_t x_t$ of each input token, ``[t]``.
        bias: the contribution $u \cdot b$ of all additive biases, that of the unembedding included.
        embed: the contribution of the embedding at the position itself.
        attn: the contribution of each layer's attention, ``[layers]``.
        mlp: the contribution of each layer's MLP, ``[layers]``.
        heads: the contribution of each query head, ``[layers, h]``; NaN where a layer has fewer heads than another.
        neurons: the MLP neurons with the largest absolute contributions.
        attn_bias: the contribution of the bias of each attention's output projection, ``[layers]``.
        mlp_bias: the contribution of the bias of each MLP's last projection, ``[layers]``.
        final_bias: the contribution of the biases of the final norm and of the unembedding.
        set_aside: the contribution of the first token after `exclude_first`, else 0.
        sources: the contribution of each query head from each position, ``[layers, h, t]``, with ``sources[l, h].sum()
            == heads[l, h]``, NaN likewise; None unless `attribute` was called with ``sources=True``.
        experts: the experts that the routers chose at the position, with their contributions, which with the shared
            ones and the biases sum to those of `mlp`; None for a model without experts.
        per_layer: the contribution of each layer's per-layer embeddings, ``[layers]``; None in a model without them.
        edits: the contribution of what edits change in the residual stream of each layer, ``[layers]``; None in a model
            that carries none (`jaxlin.with_edits`). Edits of other sites change the contributions of what they edit.
    """

    AXES: ClassVar = {
        "tokens": ("position",),
        **dict.fromkeys(("attn", "mlp", "attn_bias", "mlp_bias", "per_layer", "edits"), ("layer",)),
        "heads": ("layer", "head"),
        "sources": ("layer", "head", "position"),
        **dict.fromkeys(("value", "bias", "embed", "final_bias", "set_aside"), ()),
    }

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
    experts: Experts | None = None
    per_layer: Leaf = None
    edits: Leaf = None

    @property
    def defect(self) -> float:
        """The error of the sum of `tokens`, `bias` and `set_aside`, relative to the largest term."""
        return _defect(self.value, [*self.tokens.tolist(), self.bias, self.set_aside])

    @property
    def component_defect(self) -> float:
        """The error of the sum of all parts of the model, relative to the largest of them."""
        others = [part for each in (self.per_layer, self.edits) if each is not None for part in each.tolist()]
        parts = [self.embed, *self.attn.tolist(), *self.mlp.tolist(), *others, self.final_bias]
        return _defect(self.value, parts)

    @property
    def shares(self) -> Float[np.ndarray, " t"]:
        r"""The signed shares $c_t / \sum_s |c_s|$ of the tokens' contributions; their absolute values sum to one.

        They are not shares of `value`, in which contributions of both signs may cancel. All are 0 where `tokens` are.
        """
        total = np.abs(self.tokens).sum()
        return self.tokens / total if total else np.zeros_like(self.tokens)

    def __repr__(self) -> str:
        shape = np.shape(self.heads)
        if len(shape) != 2 or isinstance(self.value, jax.core.Tracer):
            return f"Attribution(heads of shape {shape})"
        sizes = f"tokens={len(self.tokens)}, layers={shape[0]}, heads={shape[1]}, neurons={len(self.neurons.layer)}"
        return f"Attribution(value={self.value:.4f}, {sizes}, defect={self.defect:.0e})"

    def _repr_html_(self) -> str:
        """Two tables for a notebook, by input token and by layer."""
        return _html_tables(self)

    def exclude_first(self) -> "Attribution":
        """This attribution with the first token's contribution moved from `tokens` to `set_aside`, and 0 in its place.

        Many models park attention on the first token, whose contribution then dwarfs the others. The `shares` of the
        result are those of the other tokens, and both sums are still equal to `value`.

        Raises:
            JaxlinError: there is only one token.
        """
        if len(self.tokens) < 2:
            raise JaxlinError("Attribution: expected two tokens or more, to set the first one aside; found one.")
        tokens = np.concatenate([np.zeros_like(self.tokens[:1]), self.tokens[1:]])
        return self.replaced(tokens=tokens, set_aside=self.set_aside + float(self.tokens[0]))

    @property
    def subject(self) -> str:
        """What the contributions are to, in words."""
        target = {} if self.provenance is None else self.provenance.settings.get("target")
        if isinstance(target, int):
            return f"the logit of {self._word(target)}"
        if isinstance(target, list) and len(target) == 2:
            return f"the logit of {self._word(target[0])} minus that of {self._word(target[1])}"
        return "the value"

    def _draw(self, ax: Any) -> None:
        """Bars of the contributions of the tokens, over the text."""
        labels = [*self._labels("position", len(self.tokens)), *["b"] * bool(self.bias)]
        plots.token_bars(ax, {"contribution": np.append(self.tokens, self.bias)[: len(labels)]}, labels)
        plots.write(ax, title=f"Contributions to {self.subject} ({self.value:.3f})", ylabel="contribution")


def _defect(value: float, contributions: Sequence[float]) -> float:
    scale = max(map(abs, (value, *contributions)))
    return abs(sum(contributions) - value) / scale if scale else 0.0


def _html_tables(attribution: Attribution) -> str:
    """A table of the contributions by input token, and one by layer."""
    largest = max(map(abs, (*attribution.tokens.tolist(), attribution.bias)), default=0.0)
    names = attribution._labels("position", len(attribution.tokens))
    tokens = list(zip(names, attribution.tokens.tolist(), strict=True))
    tokens += [("first token, set aside", attribution.set_aside)] if attribution.set_aside else []
    by_token = "".join(
        f"<tr><th>{html.span(name)}</th>{html.cell(value, largest, '+')}</tr>"
        for name, value in [*tokens, ("b, the biases", attribution.bias)]
    )
    layers = list(zip(attribution.attn.tolist(), attribution.mlp.tolist(), strict=True))
    scale = max(map(abs, (attribution.embed, attribution.final_bias, *(value for layer in layers for value in layer))))

    def line(name: Any, *values: float) -> str:
        return f"<tr><th>{name}</th>{''.join(html.cell(value, scale, '+') for value in values)}</tr>"

    by_layer = "".join(line(layer, attn, mlp) for layer, (attn, mlp) in enumerate(layers))
    ends = line("embedding", attribution.embed), line("final biases", attribution.final_bias)
    header = "<tr><th>layer</th><th>attention</th><th>MLP</th></tr>"
    return (
        f"{html.heading(attribution)}<p>{html.span(attribution.subject)} <b>{attribution.value:.4f}</b>; "
        f"the tokens' contributions sum to it with an error of {attribution.defect:.0e} of the largest, "
        f"the layers' of {attribution.component_defect:.0e}</p>"
        + html.table("", f"<tr><th>token</th><th>contribution</th></tr>{by_token}", "")
        + html.table("", f"{header}{ends[0]}{by_layer}{ends[1]}", "")
    )
