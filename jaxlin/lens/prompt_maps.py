"""The maps of one prompt that a fit averages: from the stream of each layer to the last, over valid positions."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlin.linearize.backward import pull_back
from jaxlin.linearize.frozen import record
from jaxlin.linearize.rows import block_sizes, default_block
from jaxlin.nn.context import Context, Evaluation
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.folding import folding_pays
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import at_least_float32
from jaxlin.nn.prompt import Embeddings


def default_dim_batch(model: Decoder, tokens: int, frozen: bool) -> int:
    """How many rows to compute together.

    All of them if they fit in memory: the matrices of each MLP are then multiplied together only once.
    """
    config, size = model.config, jnp.dtype(model.dtype).itemsize
    d, f = config.hidden_size, config.neurons
    if not frozen:
        # The derivative of a softmax stores a pattern for each row.
        max_rows = 2 * block_sizes().dense_map // (tokens * max(d, config.num_attention_heads * tokens) * size)
        return math.ceil(d / math.ceil(d / max(1, min(d, max_rows))))
    if folding_pays(d, d, f) and d * tokens * d * size <= block_sizes().dense_map:
        return d
    return default_block(d, tokens, max(d, f) * size)


@functools.partial(jax.jit, static_argnames=("first", "frozen", "rule", "dim_batch"))
def prompt_maps(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    valid: Bool[Array, " t"],
    layers: Int[Array, " n"],
    *,
    first: int,
    frozen: bool,
    rule: Rule,
    dim_batch: int,
) -> Float[Array, "n d e"]:
    r"""$\frac{1}{|V|}\sum_{t \in V} \sum_{t' \in V} \partial h_{L,t'} / \partial h_{l,t}$ for each of `layers`.

    Args:
        model: the decoder.
        x: the input embeddings.
        valid: which positions are in $V$.
        layers: the layers $l$.
        first: the lowest of `layers`; nothing below it is differentiated.
        frozen: whether every nonlinear factor is frozen.
        rule: the freeze rule of gated MLPs, if `frozen`.
        dim_batch: how many rows are computed together.
    """
    d = x.shape[1]
    mask = valid.astype(x.dtype)
    start = first + 1  # the stream after a block is the stream before the next
    pull = _frozen(model, x, mask, start, rule) if frozen else _ordinary(model, x, mask, start, dim_batch)

    def rows(begin: Int[Array, ""]) -> Float[Array, "n b e"]:
        u = jax.nn.one_hot(begin + jnp.arange(dim_batch), d, dtype=x.dtype)
        return pull(u)[layers + 1]

    count = -(-d // dim_batch)
    blocks = jax.lax.map(rows, dim_batch * jnp.arange(count))
    maps = jnp.moveaxis(blocks, 0, 1).reshape(len(layers), count * dim_batch, d)[:, :d]
    return at_least_float32(maps) / jnp.sum(valid)


Pull = Callable[[Float[Array, "b d"]], Float[Array, "l b e"]]
r"""From rows $u$ to $\sum_{t, t' \in V} u\, \partial h_{L,t'} / \partial h_{l,t}$, for the stream before each block."""


def _ordinary(model: Decoder, x: Float[Embeddings, "t d"], mask: Float[Array, " t"], start: int, rows: int) -> Pull:
    d, depth = x.shape[1], model.config.num_hidden_layers
    evaluation = Evaluation(fold=folding_pays(rows, d, model.config.neurons))
    below, _ = model.scan(model.begin(x), lambda _: Context(), stop=start)

    def through(probes: Float[Array, "l d"]) -> Float[Array, "t d"]:
        after, _ = model.scan(
            below,
            lambda probe: Context(hooks=Hooks(probes={"resid_pre": jnp.outer(mask, probe)}), evaluation=evaluation),
            probes,
            start=start,
        )
        return after.stream

    _, pull = jax.vjp(through, jnp.zeros((depth, d), x.dtype))
    return lambda u: jnp.moveaxis(jax.vmap(pull)(mask[None, :, None] * u[:, None, :])[0], 0, 1)


def _frozen(model: Decoder, x: Float[Embeddings, "t d"], mask: Float[Array, " t"], start: int, rule: Rule) -> Pull:
    frozen, column = record(model, x, rule=rule).frozen, mask[:, None, None]

    def pull(u: Float[Array, "b d"]) -> Float[Array, "l b e"]:
        added = jax.ShapeDtypeStruct((model.config.num_hidden_layers, *u.shape), u.dtype)
        gradients = pull_back(
            model,
            frozen,
            column * u[None],
            added,
            probes=lambda probe: {"resid_pre": column * probe[None]},
            start=start,
        )
        return gradients.added

    return pull
