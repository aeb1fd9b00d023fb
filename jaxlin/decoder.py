r"""`Decoder`: embed, a scan of blocks, final norm, unembed; and the held model as a recorded and replayed function.

The forward pass is one `jax.lax.scan` over blocks whose parameters are stacked on a leading layer axis. Its body is
always under `jax.checkpoint`: without it, partial evaluation hoists what does not depend on the linear input (every
widened weight, every attention pattern) out of the transposed scan and keeps it for all layers at once.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin import layers
from jaxlin.config import Config
from jaxlin.errors import JaxlinError
from jaxlin.hold import Detach, Hold, Record, Replay, Rule
from jaxlin.modules import Embedding, Linear, Schedule
from jaxlin.sites import KINDS, Place, Site, place


class PromptError(JaxlinError):
    """A prompt that the model cannot take."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coefficients:
    r"""Every $A(x)$ of one forward pass: attention patterns, inverse norms, gates. An ordinary pytree: edit it freely.

    Attributes:
        layers: the factors of the blocks by name, stacked over layers.
        norm: the factors of the final norm.
        rule: the freeze rule they were recorded under.
    """

    layers: dict[str, Any]
    norm: dict[str, Any]
    rule: Rule = field(metadata={"static": True})


class Decoder(nnx.Module):
    """A decoder-only transformer as an immutable pytree: only `jax` transforms, no mutation after construction.

    A family subclasses it with its `Block`, called as ``block(x, at: Schedule, hold)``, and its final norm. The
    parameters have the names of the checkpoint's tensors without their ``model.``.

    Attributes:
        config: the family's `Config`, static.
        linearize: whether nonlinear factors are constants to differentiation, static.
        rule: the freeze rule of gated MLPs, static.
        dtype: what is computed in, static.
    """

    Block: ClassVar[Callable[..., nnx.Module]]
    sites: ClassVar[tuple[str, ...]] = KINDS
    head_bias: ClassVar[bool] = False

    def __init__(
        self,
        config: Config,
        *,
        rngs: nnx.Rngs,
        linearize: bool = False,
        rule: Rule = "gate",
        dtype: str = "float32",
    ) -> None:
        self.config, self.linearize, self.rule, self.dtype = config, linearize, rule, dtype
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        keys = jax.random.split(rngs.params(), config.num_hidden_layers)
        self.layers = jax.vmap(lambda key: type(self).Block(config, rngs=nnx.Rngs(key)))(keys)
        self.norm = self.final_norm(config)
        tied = config.tie_word_embeddings
        head = functools.partial(Linear, config.hidden_size, config.vocab_size, bias=self.head_bias, rngs=rngs)
        self.lm_head = None if tied else head()

    def final_norm(self, config: Any) -> Any:
        """The norm between the last block and the unembedding."""
        raise TypeError(f"{type(self).__name__} defines no final norm")

    def embed(self, ids: Sequence[int] | Int[Array, " t"]) -> Float[Array, "t d"]:
        """The input embeddings of token `ids`: what the local linear map is linear in.

        Raises:
            PromptError: no ids, an id outside the vocabulary, or more ids than the model's context.
        """
        if not isinstance(ids, jax.core.Tracer):
            ids = self._checked(ids)
        return self.embed_tokens.weight[...][jnp.asarray(ids)].astype(self.dtype)

    def _checked(self, ids: Any) -> np.ndarray:
        ids, config = np.asarray(ids), self.config
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise PromptError(f"Prompt: expected a list of one token id or more; found shape {ids.shape}, {ids.dtype}.")
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            found = int(ids.min() if ids.min() < 0 else ids.max())
            raise PromptError(f"Prompt: expected token ids in 0..{config.vocab_size - 1}; found {found}.")
        if config.max_position_embeddings is not None and ids.size > config.max_position_embeddings:
            raise PromptError(
                f"Prompt: expected at most {config.max_position_embeddings} tokens, this model's context; "
                f"found {ids.size}. Shorten the prompt."
            )
        return ids

    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The residual stream after the final norm, at every position."""
        make = Detach if self.linearize else Hold
        x, _ = self.scan(x, lambda _: make(self.rule))
        return self.norm(x, make(self.rule))

    def unembed(self, h: Float[Array, "*b d"], hold: Hold | None = None) -> Float[Array, "*b vocab"]:
        """The logits of `h`, a point after the final norm.

        Args:
            h: the residual stream after the final norm.
            hold: the mode of the softcap, which some models apply to their logits; plain unless given.
        """
        bias = None if self.lm_head is None or self.lm_head.bias is None else self.lm_head.bias[...]
        logits = layers.linear(h, self._head[...], bias)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else layers.softcap(logits, cap, hold or Hold())

    @property
    def _head(self) -> nnx.Param:
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def scan(
        self,
        x: Float[Array, "t d"],
        make_hold: Callable[[Any], Hold],
        rows: Any = None,
        *,
        start: int = 0,
        stop: int | None = None,
        keep: Callable[[Hold], Any] = lambda hold: None,
    ) -> tuple[Float[Array, "t d"], Any]:
        """`x` through the blocks from `start` to before `stop`.

        Args:
            x: the residual stream before block `start`.
            make_hold: makes the hold of a block from its row of `rows`.
            rows: a pytree stacked over all layers.
            start: the first block.
            stop: the block after the last; None for all.
            keep: what of a block's hold is returned, stacked over the blocks passed.
        """
        depth = self.config.num_hidden_layers
        stop = depth if stop is None else stop
        whole = (start, stop) == (0, depth)
        stack = (self.layers, self._schedule(x.shape[0]), rows)
        positions = jnp.arange(x.shape[0])

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def body(x: Array, row: Any) -> tuple[Array, Any]:
            # A slice of the stack would be a second copy of the weights; an index, taken here, is not.
            block, schedule, row = row if whole else jax.tree.map(lambda a: a[row], stack)
            hold = make_hold(row)
            return block(x, Schedule(*schedule, positions), hold), keep(hold)

        return jax.lax.scan(body, x, stack if whole else jnp.arange(start, stop))

    def block(self, layer: int, x: Float[Array, "t d"], hold: Hold) -> Float[Array, "t d"]:
        """`x` through one block."""
        block, schedule = jax.tree.map(lambda a: a[layer], (self.layers, self._schedule(x.shape[0])))
        return block(x, Schedule(*schedule, jnp.arange(x.shape[0])), hold)

    def _schedule(self, tokens: int) -> tuple[Array, Array, Array]:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        inv_freq, scale = zip(*(rope.frequencies(tokens) for rope in self.config.ropes), strict=True)
        windows = [tokens if window is None else window for window in self.config.windows]
        return jnp.asarray(np.stack(inv_freq), wide), jnp.asarray(scale, wide), jnp.asarray(windows)


class Recording(NamedTuple):
    """One forward pass: what `record` returns.

    Attributes:
        coefficients: every nonlinear factor.
        stream: the residual stream before the final norm.
        output: the residual stream after it.
        sites: the values of the recorded kinds of sites, stacked over layers.
    """

    coefficients: Coefficients
    stream: Float[Array, "t d"]
    output: Float[Array, "t d"]
    sites: dict[str, Float[Array, "l t d"]]

    def at(self, place: Place) -> Float[Array, "t d"]:
        """The value at `place`, whose kind must have been recorded."""
        if place.final:
            return self.output
        values = self.sites[place.kind]
        return self.stream if place.layer == values.shape[0] else values[place.layer]


def record(
    model: Decoder, x: Float[Array, "t d"], kinds: tuple[str, ...] = (), *, rule: Rule | None = None
) -> Recording:
    """Run `model` at `x` and keep every nonlinear factor, and the values at the sites of `kinds`."""
    rule = model.rule if rule is None else rule
    stream, (factors, sites) = model.scan(
        x, lambda _: Record(rule), keep=lambda hold: (hold.values, {kind: hold.sites[kind] for kind in kinds})
    )
    last = Record(rule)
    output = model.norm(stream, last)
    return Recording(Coefficients(factors, last.values, rule), stream, output, sites)


def coefficients(model: Decoder, x: Float[Array, "t d"], *, rule: Rule | None = None) -> Coefficients:
    r"""Every $A(x)$ of `model` at `x`; with them, `linear` is the model's exact local linear map.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        rule: the freeze rule of gated MLPs; the model's own unless given.
    """
    return record(model, x, rule=rule).coefficients


def linear(
    model: Decoder,
    coefficients: Coefficients,
    v: Float[Array, "t d"],
    *,
    source: Site = "embed",
    target: Site = "final",
) -> Float[Array, "t d"]:
    r"""The held model: $v \mapsto J v + b$ from `source` to `target`, with every nonlinear factor replayed.

    Affine in `v` at any `v`: nothing nonlinear is computed. In a model without biases it is linear, and
    `jax.linear_transpose` gives rows of $J$.
    """
    first, last = (place(site, model.config.num_hidden_layers, model.sites) for site in (source, target))
    return replay(model, coefficients, jnp.zeros_like(v), first, last, {first: v})


def replay(
    model: Decoder,
    coefficients: Coefficients,
    stream: Float[Array, "t d"],
    start: Place,
    target: Place,
    replacements: Mapping[Place, Float[Array, "t d"]],
) -> Float[Array, "t d"]:
    """The held model from the block of `start` to `target`, with the values at some places replaced.

    Jointly linear in `stream`, the replacements and the biases.

    Args:
        model: the decoder.
        coefficients: what is held.
        stream: the residual stream before the block of `start`; not read where a replacement stands there.
        start: where to begin.
        target: where to read.
        replacements: what stands in for the value at each place.
    """
    inside = {
        p.layer: {q.kind: v for q, v in replacements.items() if q.layer == p.layer and q.inside} for p in replacements
    }
    before = {p.layer: v for p, v in replacements.items() if not p.inside}

    def through(layer: int, x: Array) -> tuple[Array, Hold]:
        factors = jax.tree.map(lambda a: a[layer], coefficients.layers)
        hold = Replay(factors, coefficients.rule, replacements=inside.get(layer))
        return model.block(layer, x, hold), hold

    x, layer = stream, start.layer
    for stop in sorted({p.layer for p in replacements} | {target.layer}):
        if layer < stop:
            x, _ = model.scan(
                x, lambda row: Replay(row, coefficients.rule), coefficients.layers, start=layer, stop=stop
            )
        x, layer = before.get(stop, x), stop
        if target.layer == stop:
            break
        if inside[stop]:
            x, _ = through(stop, x)
            layer = stop + 1
    if target.inside:
        return through(target.layer, x)[1].sites[target.kind]
    return model.norm(x, Replay(coefficients.norm, coefficients.rule)) if target.final else x
