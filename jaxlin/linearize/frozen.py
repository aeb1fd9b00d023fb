"""The held model: recorded once at an input, then replayed as a function that is linear at every input."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.common.arrays import equal_by_identity
from jaxlin.common.errors import JaxlinError
from jaxlin.nn.arguments import check_model
from jaxlin.nn.biases import biases_of
from jaxlin.nn.context import Context, Evaluation
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Record, RematFactors, Replay
from jaxlin.nn.freeze_rules import Rule, checked_rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.patterns import first_tokens
from jaxlin.nn.sites import Place, Site, checked_kinds, ends


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class FrozenFactors:
    r"""Every $A(x)$ of one forward pass: attention patterns, inverse norms, gates. An ordinary pytree: edit it freely.

    Attributes:
        layers: the factors of the blocks by name, stacked over layers; or what they are recomputed from.
        norm: the factors of the final norm.
        rule: the freeze rule they were recorded under.
    """

    layers: dict[str, Any] | RematFactors
    norm: dict[str, Any]
    rule: Rule = field(metadata={"static": True})

    def __repr__(self) -> str:
        # np.shape, because JAX puts anything in the place of a leaf.
        layers, norm = jax.tree.map(np.shape, (self.layers, self.norm))
        return f"FrozenFactors(layers={layers}, norm={norm}, rule={self.rule!r})"

    @property
    def tokens(self) -> int:
        """How many positions they were recorded at."""
        return jax.tree.leaves(self.norm)[0].shape[0]

    def first(self, tokens: int) -> "FrozenFactors":
        """Those of the first `tokens` positions, which is all that reaches any of them.

        What is recomputed is recomputed as in a prompt of that length: see `Decoder.same_frequencies`.
        """
        if tokens == self.tokens:
            return self
        if isinstance(self.layers, RematFactors):
            layers: Any = replace(self.layers, stream=self.layers.stream[:, :tokens])
        else:
            layers = first_tokens(self.layers, tokens)
        return replace(self, layers=layers, norm=jax.tree.map(lambda a: a[:tokens], self.norm))


@equal_by_identity
class Recording(NamedTuple):
    """One forward pass: what `record` returns.

    Attributes:
        frozen: every nonlinear factor.
        stream: the residual stream before the final norm.
        output: the residual stream after it.
        sites: the values of the recorded kinds of sites, stacked over layers; at one position if one was asked for.
    """

    frozen: FrozenFactors
    stream: Float[Array, "t d"]
    output: Float[Array, "t d"]
    sites: dict[str, Float[Array, "l ..."]]

    def value_at(self, place: Place) -> Float[Array, "t d"]:
        """The value at `place`, whose kind must have been recorded."""
        if place.final:
            return self.output
        values = self.sites[place.kind]
        return self.stream if place.layer == values.shape[0] else values[place.layer]


def rule_of(model: Decoder, rule: Rule | str | None) -> Rule:
    """`rule`, or that of `model` where None is given.

    Raises:
        JaxlinError: no such rule.
    """
    return checked_rule(model.rule if rule is None else rule)


def record(
    model: Decoder,
    x: Float[Array, "t d"],
    kinds: tuple[str, ...] = (),
    *,
    rule: Rule | str | None = None,
    position: int | Int[Array, ""] | None = None,
    remat: bool = False,
) -> Recording:
    """Run `model` at `x` and keep every nonlinear factor, and the values at the sites of `kinds`.

    With a `position`, the values at the sites are kept there alone. With `remat`, the stream that enters each block
    is kept instead of its factors.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: a kind of site that the model does not have.
        JaxlinError: no such rule.
    """
    check_model(model)
    model.check_embeddings(x)
    chosen = rule_of(model, rule)

    def collect(ctx: Context) -> Any:
        sites = {kind: ctx.hooks.values[kind] for kind in checked_kinds(kinds, tuple(ctx.hooks.values))}
        held = ctx.hooks.values["resid_pre"] if remat else ctx.mode.factors
        return held, sites if position is None else jax.tree.map(lambda a: a[position], sites)

    stream, (factors, sites) = model.scan(x, lambda _: Context(Record(chosen)), collect=collect)
    if remat:
        factors = RematFactors(factors, biases_of(model.layers), chosen)
    last = Record(chosen)
    output = model.norm(stream, Context(last))
    return Recording(FrozenFactors(factors, last.factors, chosen), stream, output, sites)


def check_frozen(held: Any) -> None:
    """Refuse what was not recorded.

    Raises:
        JaxlinError: `held` is no `FrozenFactors`.
    """
    if not isinstance(held, FrozenFactors):
        raise JaxlinError(
            f"Held model: expected frozen factors, as jaxlin.freeze(model, x) gives; found {type(held).__name__}."
        )


def freeze(model: Decoder, x: Float[Array, "t d"], *, rule: Rule | None = None, remat: bool = False) -> FrozenFactors:
    r"""Every $A(x)$ of `model` at `x`; with them, `replay` is the model's exact local linear map.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        rule: the freeze rule of gated MLPs; the model's own unless given.
        remat: keep the stream that enters each block instead of its factors, ``t d`` numbers a layer, and compute
            the factors again, one block at a time, whenever they are needed: a forward pass more for each pass of the
            map. For prompts whose factors do not fit in memory.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: no such rule.
    """
    return record(model, x, rule=rule, remat=remat).frozen


def replay(
    model: Decoder,
    frozen: FrozenFactors,
    v: Float[Array, "t *b d"],
    *,
    source: Site = "embed",
    target: Site = "final",
) -> Float[Array, "t *b d"]:
    r"""The held model: $v \mapsto J v + b$ from `source` to `target`, with every nonlinear factor replayed.

    Affine in `v` at any `v`: nothing nonlinear is computed. In a model without biases it is linear, and
    `jax.linear_transpose` gives rows of $J$. What reaches the target past the source is left out, as the stream beside
    ``attn_out`` or ``mlp_out``; `jaxlin.local_map` has it in its bias.

    Raises:
        SiteError: no such site, or a target that does not come after the source.
        JaxlinError: no frozen factors, or vectors of another shape than the stream that they were recorded at.
    """
    check_model(model)
    check_frozen(frozen)
    first, last = ends(source, target, model.config.num_hidden_layers, model.sites)
    tokens, d = frozen.tokens, model.config.hidden_size
    if jnp.ndim(v) < 2 or (v.shape[0], v.shape[-1]) != (tokens, d):
        raise JaxlinError(f"Held model: expected vectors of shape ({tokens}, ..., {d}); found {jnp.shape(v)}.")
    return replay_between(model, frozen, jnp.zeros_like(v), first, last, {first: v})


def replay_between(
    model: Decoder,
    frozen: FrozenFactors,
    stream: Float[Array, "t *b d"],
    start: Place,
    target: Place,
    replacements: Mapping[Place, Float[Array, "t *b d"]],
    *,
    queries: int = 0,
    fold: bool = False,
) -> Float[Array, "q *b d"]:
    """The held model from the block of `start` to `target`, with the values at some places replaced.

    Jointly linear in `stream`, the replacements and the biases.

    Args:
        model: the decoder.
        frozen: what is held.
        stream: the residual stream before the block of `start`; not read where a replacement stands there.
        start: where to begin.
        target: where to read.
        replacements: what stands in for the value at each place.
        queries: at how many of the last positions the target is read; 0 for all. The block that leads to it computes
            those alone.
        fold: whether MLPs multiply their matrices together first; the model must have no biases.
    """
    inside = {
        p.layer: {q.kind: v for q, v in replacements.items() if q.layer == p.layer and q.inside} for p in replacements
    }
    before = {p.layer: v for p, v in replacements.items() if not p.inside}

    final_block = target.layer if target.inside else target.layer - 1
    # Every block apart from the scan is a program of its own to compile.
    alone = {p.layer for p in replacements if p.inside} | ({final_block} if queries else set())
    stops = {*alone, *before, target.layer}

    def through(layer: int, x: Array) -> tuple[Array, Context]:
        factors = jax.tree.map(lambda a: a[layer], frozen.layers)
        asked = queries if layer == final_block else 0
        hooks = Hooks(replacements=inside.get(layer))
        ctx = Context(Replay(factors), hooks, evaluation=Evaluation(last=asked, fold=fold))
        return model.block(layer, x, ctx), ctx

    def replayed(factors: Any) -> Context:
        return Context(Replay(factors), evaluation=Evaluation(fold=fold))

    x, layer = stream, start.layer
    while True:
        x = before.get(layer, x)
        if layer == target.layer:
            break
        if layer in alone:
            x, _ = through(layer, x)
            layer += 1
        else:
            stop = min(place for place in stops if place > layer)
            x, _ = model.scan(x, replayed, frozen.layers, start=layer, stop=stop)
            layer = stop
    if target.inside:
        x = through(layer, x)[1].hooks.values[target.kind]
    y = model.norm(x, Context(Replay(frozen.norm))) if target.final else x
    return y[-queries:]
