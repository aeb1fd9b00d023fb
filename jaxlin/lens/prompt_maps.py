"""The maps of one prompt that a fit averages: from each layer's stream to the last, of all valid positions together."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlin.linearize.frozen import record
from jaxlin.linearize.rows import default_block, sizes
from jaxlin.nn.biases import without_biases
from jaxlin.nn.context import Context, Evaluation
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.folding import folding_pays
from jaxlin.nn.freeze_modes import Replay, Rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import at_least_float32


def default_dim_batch(model: Decoder, tokens: int, frozen: bool) -> int:
    """How many rows pass together: all of them where they fit, as each MLP is then multiplied into one matrix once."""
    config, size = model.config, jnp.dtype(model.dtype).itemsize
    d, f = config.hidden_size, config.intermediate_size
    if not frozen:
        # The derivative of a softmax has a pattern for each row.
        most = 2 * sizes().whole // (tokens * max(d, config.num_attention_heads * tokens) * size)
        return math.ceil(d / math.ceil(d / max(1, min(d, most))))
    if folding_pays(d, d, f) and d * tokens * d * size <= sizes().whole:
        return d
    return default_block(d, tokens, max(d, f) * size)


@functools.partial(jax.jit, static_argnames=("first", "frozen", "rule", "dim_batch"))
def prompt_maps(
    model: Decoder,
    x: Float[Array, "t d"],
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
        valid: which positions are $V$.
        layers: $l$, of which `first` is the lowest.
        first: how far down the derivative is taken.
        frozen: whether every nonlinear factor is frozen.
        rule: the freeze rule of gated MLPs, if `frozen`.
        dim_batch: rows computed together.
    """
    d = x.shape[1]
    at = valid.astype(x.dtype)
    # The stream after a block is that before the next: below the first nothing is differentiated.
    start = first + 1
    pull = _frozen(model, x, at, start, rule) if frozen else _ordinary(model, x, at, start, dim_batch)

    def rows(begin: Int[Array, ""]) -> Float[Array, "n b e"]:
        u = jax.nn.one_hot(begin + jnp.arange(dim_batch), d, dtype=x.dtype)
        return pull(u)[layers + 1]

    count = -(-d // dim_batch)
    found = jax.lax.map(rows, dim_batch * jnp.arange(count))
    summed = jnp.moveaxis(found, 0, 1).reshape(len(layers), count * dim_batch, d)[:, :d]
    return at_least_float32(summed) / jnp.sum(valid)


def _ordinary(model: Decoder, x: Array, valid: Array, start: int, rows: int) -> Any:
    d, depth = x.shape[1], model.config.num_hidden_layers
    evaluation = Evaluation(fold=folding_pays(rows, d, model.config.intermediate_size))
    below, _ = model.scan(x, lambda _: Context(), stop=start)

    def through(probes: Float[Array, "l d"]) -> Float[Array, "t d"]:
        stream, _ = model.scan(
            below,
            lambda probe: Context(hooks=Hooks(probes={"resid_pre": jnp.outer(valid, probe)}), evaluation=evaluation),
            probes,
            start=start,
        )
        return stream

    _, pull = jax.vjp(through, jnp.zeros((depth, d), x.dtype))
    return lambda u: jnp.moveaxis(jax.vmap(pull)(valid[None, :, None] * u[:, None, :])[0], 0, 1)


def _frozen(model: Decoder, x: Array, valid: Array, start: int, rule: Rule) -> Any:
    recorded, bare = record(model, x, rule=rule).frozen, without_biases(model)

    def pull(u: Float[Array, "b d"]) -> Float[Array, "l b e"]:
        evaluation = Evaluation(fold=folding_pays(u.shape[0], u.shape[1], model.config.intermediate_size))
        at = valid[:, None, None]

        def through(stream: Float[Array, "t b d"], probes: Float[Array, "l b d"]) -> Float[Array, "t b d"]:
            # The stream is zero: an input, because a function that adds a constant has no transpose.
            return bare.scan(
                stream,
                lambda row: Context(
                    Replay(row[0], rule), Hooks(probes={"resid_pre": at * row[1][None]}), evaluation=evaluation
                ),
                (recorded.layers, probes),
                start=start,
            )[0]

        shapes = [jax.ShapeDtypeStruct((n, *u.shape), u.dtype) for n in (len(valid), model.config.num_hidden_layers)]
        return jax.linear_transpose(through, *shapes)(at * u[None])[1]

    return pull
