"""The frozen model: nonlinear factors are recorded at one input and replayed, which makes it affine in any input."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.common.arguments import checked
from jaxlin.common.arrays import equal_by_identity
from jaxlin.common.errors import JaxlinError
from jaxlin.nn.biases import biases_of
from jaxlin.nn.block_input import BlockInput
from jaxlin.nn.context import Context, Evaluation
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Record, RematFactors, Replay
from jaxlin.nn.freeze_rules import Rule, checked_rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.patterns import first_tokens
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import CHANGES, InnerSite, Place, Site, checked_kinds, ends
from jaxlin.nn.stack import Stack, layer_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class FrozenFactors:
    r"""The nonlinear factors $A(x)$ of one forward pass: attention patterns, inverse norms and gates of MLPs.

    They are an ordinary pytree, whose arrays may be edited before `replay`.

    Attributes:
        layers: the factors of the blocks by name, stacked over layers, see `jaxlin.nn.stack`; with ``remat=True``,
            what recomputes them.
        norm: the factors of the final norm.
        rule: the freeze rule under which they were recorded.
    """

    layers: dict[str, Any] | Stack | RematFactors
    norm: dict[str, Any]
    rule: Rule = field(metadata={"static": True})

    def __repr__(self) -> str:
        # np.shape, because within transforms JAX replaces the arrays by other objects.
        layers, norm = jax.tree.map(np.shape, (self.layers, self.norm))
        return f"FrozenFactors(layers={layers}, norm={norm}, rule={self.rule!r})"

    @property
    def tokens(self) -> int:
        """The number of positions that they were recorded at."""
        return jax.tree.leaves(self.norm)[0].shape[0]

    def first(self, tokens: int) -> "FrozenFactors":
        """The factors of the first `tokens` positions, which no later position affects.

        With ``remat=True`` they are recomputed as in a prompt of that length: see `Decoder.same_frequencies`.
        """
        if tokens == self.tokens:
            return self
        if isinstance(self.layers, RematFactors):
            inputs = jax.tree.map(lambda a: a[:, :tokens], self.layers.inputs)
            layers: Any = replace(self.layers, inputs=inputs)
        else:
            layers = first_tokens(self.layers, tokens)
        return replace(self, layers=layers, norm=jax.tree.map(lambda a: a[:tokens], self.norm))


@equal_by_identity
class Recording(NamedTuple):
    """One forward pass, as `record` returns it.

    Attributes:
        frozen: the frozen factors.
        stream: the residual stream before the final norm.
        output: the residual stream after it.
        sites: the values of the recorded kinds of sites, stacked over layers, see `jaxlin.nn.stack`; with `position`,
            only those there.
    """

    frozen: FrozenFactors
    stream: Float[Array, "t d"]
    output: Float[Array, "t d"]
    sites: dict[str, Any]

    def value_at(self, place: Place) -> Float[Array, "t d"]:
        """The value at `place`, whose kind must have been recorded."""
        if place.final:
            return self.output
        values = self.sites[place.kind]
        return self.stream if place.layer == values.shape[0] else values[place.layer]


def rule_of(model: Decoder, rule: Rule | str | None) -> Rule:
    """`rule`, or the freeze rule of `model` if `rule` is None.

    Raises:
        JaxlinError: there is no such rule.
    """
    return checked_rule(model.rule if rule is None else rule)


@checked
def record(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    kinds: tuple[str, ...] = (),
    *,
    rule: Rule | str | None = None,
    position: int | Int[Array, ""] | None = None,
    remat: bool = False,
) -> Recording:
    """Run `model` at `x` and record every nonlinear factor, and the values at the sites of `kinds`.

    With a `position`, the values at the sites are recorded only there. With `remat`, the residual stream that enters
    each block is recorded instead of its factors, see `freeze`.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: the model has no such kind of site.
        JaxlinError: there is no such rule.
    """
    x = model.check_embeddings(x)
    freeze_rule = rule_of(model, rule)

    def collect(ctx: Context) -> Any:
        # Which layers without a router, or with the keys of another layer, do not pass.
        values = {InnerSite.ROUTE: None, InnerSite.KEYS: None, **ctx.hooks.values}
        if model.edits is not None:
            values |= dict(zip(CHANGES, ctx.stream_changes(), strict=True))
        sites = tuple(values[kind] for kind in checked_kinds(kinds, tuple(values)))
        factors = ctx.read_inputs if remat else ctx.mode.factors
        return factors, sites if position is None else jax.tree.map(lambda a: a[position], sites)

    stream, (factors, sites) = model.scan(x, lambda _: Context(Record(freeze_rule)), collect=collect)
    if remat:
        factors = RematFactors(factors, biases_of(model.layers), freeze_rule)
    norm = Record(freeze_rule)
    output = model.norm(stream, Context(norm))
    return Recording(
        FrozenFactors(factors, norm.factors, freeze_rule), stream, output, dict(zip(kinds, sites, strict=True))
    )


def check_frozen(frozen: Any) -> None:
    """Check that `frozen` are frozen factors.

    Raises:
        JaxlinError: `frozen` is not a `FrozenFactors`.
    """
    if not isinstance(frozen, FrozenFactors):
        raise JaxlinError(
            f"Frozen model: expected frozen factors, as jaxlin.freeze(model, x) gives; found {type(frozen).__name__}."
        )


@checked
def freeze(
    model: Decoder, x: Float[Embeddings, "t d"], *, rule: Rule | None = None, remat: bool = False
) -> FrozenFactors:
    r"""The nonlinear factors $A(x)$ of `model` at `x`, with which `replay` computes its exact local linear map.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        rule: the freeze rule of gated MLPs; that of the model if None.
        remat: store the residual stream that enters each block, ``t d`` numbers a layer, instead of its factors, and
            recompute them block by block whenever they are needed. It is for prompts whose factors do not fit in
            memory, and costs one more forward pass for each pass of the map.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: there is no such rule.
    """
    return record(model, x, rule=rule, remat=remat).frozen


@checked
def replay(
    model: Decoder,
    frozen: FrozenFactors,
    v: Float[Array, "t *b d"],
    *,
    source: Site = "embed",
    target: Site = "final",
) -> Float[Array, "t *b d"]:
    r"""The frozen model: $v \mapsto J v + b$ from `source` to `target`, with every nonlinear factor replayed.

    It is affine in `v` for any `v`, because nothing nonlinear is computed. In a model without biases it is linear, and
    `jax.linear_transpose` gives rows of $J$. What reaches the target without passing the source, such as the residual
    stream beside ``attn_out`` or ``mlp_out``, is left out here; `jaxlin.local_map` includes it in its bias.

    Raises:
        SiteError: there is no such site, or the target does not come after the source.
        JaxlinError: `frozen` is not a `FrozenFactors`, or was recorded at a stream of another shape than `v`.
    """
    check_frozen(frozen)
    first, last = ends(source, target, model.config.num_hidden_layers, model.sites)
    tokens, d = frozen.tokens, model.config.hidden_size
    if jnp.ndim(v) < 2 or (v.shape[0], v.shape[-1]) != (tokens, d):
        raise JaxlinError(f"Frozen model: expected vectors of shape ({tokens}, ..., {d}); found {jnp.shape(v)}.")
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
    """The frozen model from the block of `start` to `target`, with the values at some places replaced.

    It is jointly linear in `stream`, the replacements and the biases.

    Args:
        model: the decoder.
        frozen: its frozen factors.
        stream: the residual stream that enters the block of `start`; it is not read if that value is replaced.
        start: the place whose block runs first.
        target: the place whose value is returned.
        replacements: the new value at each place.
        queries: at how many of the last positions the target is read; 0 for all. The block that leads to it computes
            only those.
        fold: whether MLPs multiply their matrices together first; the model must have no biases.
    """
    inner_values = {
        p.layer: {q.kind: v for q, v in replacements.items() if q.layer == p.layer and q.inside} for p in replacements
    }
    block_inputs = {p.layer: v for p, v in replacements.items() if not p.inside}

    final_block = target.layer if target.inside else target.layer - 1
    # Only these blocks run outside of the scan, because each of them is compiled separately.
    unrolled = {p.layer for p in replacements if p.inside} | ({final_block} if queries else set())
    stops = {*unrolled, *block_inputs, target.layer}

    def run_block(layer: int, x: BlockInput) -> tuple[BlockInput, Context]:
        factors = layer_of(frozen.layers, layer)
        evaluation = Evaluation(last=queries if layer == final_block else 0, fold=fold)
        ctx = Context(Replay(factors), Hooks(replacements=inner_values.get(layer)), evaluation=evaluation)
        return model.block(layer, x, ctx), ctx

    def replay_layer(factors: Any) -> Context:
        return Context(Replay(factors), evaluation=Evaluation(fold=fold))

    x, layer = BlockInput(stream), start.layer
    while True:
        x = x._replace(stream=block_inputs.get(layer, x.stream))
        if layer == target.layer:
            break
        if layer in unrolled:
            x, _ = run_block(layer, x)
            layer += 1
        else:
            stop = min(place for place in stops if place > layer)
            x, _ = model.scan(x, replay_layer, frozen.layers, start=layer, stop=stop)
            layer = stop
    y = run_block(layer, x)[1].hooks.values[target.kind] if target.inside else x.stream
    if target.final:
        y = model.norm(y, Context(Replay(frozen.norm)))
    return y[-queries:]
