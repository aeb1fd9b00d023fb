"""Which edges and components stay intact in the runs of the comparison, and the value of the target in each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlin.causal.effects import BATCH_SIZE
from jaxlin.linearize.targets import read_target
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.sites import InnerSite
from jaxlin.quantized import PackedMatrix


def unpacked(model: Decoder) -> Decoder:
    """The model with dense weights: the runs are many and their prompts short, so that unpacking would take longest."""

    def dense(node: Any) -> Any:
        return jnp.asarray(node[...], model.dtype) if isinstance(node, PackedMatrix) else node

    return jax.tree.map(dense, model, is_leaf=lambda node: isinstance(node, PackedMatrix))


def top_edges(scores: Float[np.ndarray, "a e"], possible: Bool[np.ndarray, "a e"], count: int) -> np.ndarray:
    """The edges with the largest absolute scores."""
    order = np.argsort(-np.where(possible, np.abs(scores), -1), axis=None, kind="stable")[:count]
    edges = np.zeros(scores.size, bool)
    edges[order] = True
    return edges.reshape(scores.shape) & possible


def top_components(scores: Float[np.ndarray, " a"], count: int) -> Bool[np.ndarray, " a"]:
    """The components with the largest absolute scores."""
    return np.isin(np.arange(len(scores)), np.argsort(-np.abs(scores), kind="stable")[:count])


@jax.jit
def read_components(
    model: Decoder, x: Float[Array, "t d"], other: Float[Array, "t d"], intact: Bool[Array, "n a"], target: Array
) -> Float[Array, " n"]:
    """The value of `target` in runs of the ordinary model in which some components write what they do at `x`'s place.

    All others, the embeddings first among them, write what they write in the other prompt. The model has no biases in
    attention, so that the components of a layer are its heads and its MLP.
    """
    sites = (InnerSite.GATED_HEADS, "mlp_out")

    def collect(ctx: Context) -> Any:
        return tuple(ctx.hooks.values[site] for site in sites)

    _, there = model.scan(other, lambda _: Context(), collect=collect)
    depth = model.layout.depth

    def read(run: Bool[Array, " a"]) -> Float[Array, ""]:
        def make_context(row: Any) -> Context:
            own, (heads, mlp) = row
            edits = {
                sites[0]: lambda z: jnp.where(own[None, :-1, None], z, heads),
                sites[1]: lambda added: jnp.where(own[-1], added, mlp),
            }
            return Context(hooks=Hooks(edits=edits))

        start = jnp.where(run[0], x, other)
        stream, _ = model.scan(start, make_context, (run[1:].reshape(depth, -1), there))
        return read_target(model, model.norm(stream, Context())[-1], target, Context())

    return jax.lax.map(read, intact, batch_size=BATCH_SIZE)


@jax.jit
def direction(model: Decoder, right: Array, wrong: Array) -> Float[Array, " d"]:
    """The direction of the output that reads the mean logit of some tokens less that of others."""
    head = model.unembedding.weight
    rows = (model.embed_tokens.weight if head is None else head)[jnp.concatenate([right, wrong])]
    weights = jnp.concatenate([jnp.full(len(right), 1 / len(right)), jnp.full(len(wrong), -1 / len(wrong))])
    return jnp.einsum("n,nd->d", weights, rows.astype(model.dtype)) * model.config.logit_scale
