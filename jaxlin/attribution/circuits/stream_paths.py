r"""How what components write reaches those that read, through the residual streams alone.

Components write and read at places, in the order of the forward pass: place 0 is that of the embeddings, the next three
are those of attention, MLP and per-layer embeddings of layer 0, and so on; the last is the stream after the last block.
With one residual stream, what is written arrives at all later places, times a factor that is counted with the
components (`jaxlin.attribution.circuits.expansion`). Streams that mix between layers (`jaxlin.nn.altup`) carry it by a
frozen linear map, to which residual connections of a layer belong too.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.attribution.circuits.expansion import has_several_streams
from jaxlin.linearize.backward import transpose
from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.biases import without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import InnerSite

WRITE_SITES = ("attn_out", "mlp_out", "per_layer_out")
READ_SITES = (InnerSite.ATTN_IN, InnerSite.MLP_IN, InnerSite.PER_LAYER_IN)
"""Where the components of a layer write, and where they read, in the order of their places."""


def place_count(model: Decoder) -> int:
    """The number of places at which something reads: that of the stream after the last block is the last."""
    return 2 + len(WRITE_SITES) * model.layout.depth


@jax.jit
def gradients_at_places(model: Decoder, frozen: FrozenFactors, reads: Float[Array, "r t d"]) -> Float[Array, "w t d"]:
    """The gradient in what is written at each place but the last, from that in what is read at each place."""
    if not has_several_streams(model):
        return jnp.cumsum(reads[:0:-1], axis=0)[::-1]
    shape = model.layout.depth, len(WRITE_SITES), *reads.shape[1:]
    by_layer = jnp.moveaxis(reads[1:-1].reshape(shape), 1, 0)
    added = {site: jax.ShapeDtypeStruct(by_layer.shape[1:], reads.dtype) for site in WRITE_SITES}
    run = functools.partial(_run, frozen=frozen)
    embed, into = transpose(run, model, reads[-1], added)((reads[-1], tuple(by_layer)))
    by_place = jnp.stack([into[site] for site in WRITE_SITES], axis=1)
    return jnp.concatenate([embed[None], by_place.reshape(-1, *embed.shape)])


@jax.jit
def taken(
    model: Decoder,
    frozen: FrozenFactors,
    writes: Float[Array, "c t d"],
    written_at: Int[Array, " c"],
    read: Float[Array, "t d"],
    read_at: Any,
) -> Float[Array, "c t"]:
    """What is read at one place, with a gradient, of each of some writes at earlier places, at each token."""
    if not has_several_streams(model):
        return jnp.einsum("ctd,td->ct", writes, read, precision=HIGHEST)
    gradients = gradients_at_places(model, frozen, read_alone(model, read, read_at))
    return jnp.einsum("ctd,ctd->ct", writes, gradients[written_at], precision=HIGHEST)


def read_alone(model: Decoder, read: Float[Array, "t d"], place: Any) -> Float[Array, "r t d"]:
    """What is read at each place, of a gradient at one of them alone."""
    return jnp.zeros((place_count(model), *read.shape), read.dtype).at[place].set(read)


@jax.jit
def carried_to_end(
    model: Decoder, frozen: FrozenFactors, place: Any, write: Float[Array, "t d"]
) -> Float[Array, "t d"]:
    """What is written at a place, as it is in the stream after the last block."""
    if not has_several_streams(model):
        return write
    writes = jnp.zeros((place_count(model) - 1, *write.shape), write.dtype).at[place].set(write)
    by_layer = jnp.moveaxis(writes[1:].reshape(-1, len(WRITE_SITES), *write.shape), 1, 0)
    return _run(without_biases(model), writes[0], dict(zip(WRITE_SITES, by_layer, strict=True)), frozen=frozen)[0]


def _run(
    bare: Decoder, x: Float[Array, "t d"], added: dict[str, Any], *, frozen: FrozenFactors
) -> tuple[Float[Array, "t d"], tuple[Any, ...]]:
    """The stream after the last block, and what is read at each site, if components write what is `added`."""

    def replay_block(row: Any) -> Context:
        factors, own = row
        return Context(Replay(factors), Hooks(replacements=own))

    def read(ctx: Context) -> tuple[Any, ...]:
        return tuple(ctx.hooks.values[site] for site in READ_SITES)

    return bare.scan(x, replay_block, (frozen.layers, added), collect=read)
