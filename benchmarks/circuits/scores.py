r"""The scores that methods give to all edges between heads and MLPs, from gradients at what each reads.

With $r_b$, the gradient of the target in the stream that $b$ alone reads, and $o_a$, what $a$ writes,

========================  ====================================================================================
circuit                   $\sum_t r_b \cdot o_a$ with all factors frozen: the edges of `jaxlin.circuit`
circuit, difference       $\sum_t r_b \cdot (o_a - o_a')$, likewise, where $o_a'$ is written in the other prompt
EAP                       the same with the ordinary gradient
EAP-IG                    with its mean over `STEPS` inputs between both prompts, $x' + \tfrac{k}{n}(x - x')$
========================  ====================================================================================

A head's gradient is that through its queries, keys and values together; that of a frozen model is through values alone.
The score of a component is the sum over its edges to others, its gradient times what it writes.

Sources: Syed, Rager and Conmy, "Attribution Patching Outperforms Automated Circuit Discovery", 2023; Hanna, Pezzelle
and Belinkov, "Have Faith in Faithfulness", 2024.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.attribution.circuits.expansion import stream_factors
from jaxlin.causal.own_streams import places_of, writes
from jaxlin.linearize.targets import read_target
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Detach, FreezeMode, Plain
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layer_scan import scan_layers
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import InnerSite

STEPS = 10
"""The inputs of EAP-IG."""

BATCH_SIZE = 5
"""How many of them are passed through the model together."""

METHODS = ("circuit", "circuit, difference", "EAP", "EAP-IG")


@functools.partial(jax.jit, static_argnames="steps")
def scores(
    model: Decoder, x: Float[Array, "t d"], other: Float[Array, "t d"], target: Array, steps: int = STEPS
) -> dict[str, Float[Array, "a e"]]:
    """The scores of all pairs of components by each method; those of the output are the last. `METHODS` names them."""
    here, _ = writes(model, x)
    difference = here - writes(model, other)[0]

    def read(k: Array) -> Array:
        return read_gradients(model, other + (k / steps) * (x - other), target, Plain())

    # The last of the inputs is x itself, whose gradient is that of EAP.
    between = jax.lax.map(read, jnp.arange(1, steps + 1).astype(x.dtype), batch_size=BATCH_SIZE)
    at_x, mean = between[-1], jnp.mean(between, axis=0)
    frozen = read_gradients(model, x, target, Detach(model.rule))

    def edges(written: Array, reads: Array) -> Array:
        rows = (part.reshape(len(part), -1) for part in (written, reads))
        return jnp.einsum("ai,ei->ae", *rows, precision=HIGHEST)

    each = (here, frozen), (difference, frozen), (difference, at_x), (difference, mean)
    return {name: edges(*pair) for name, pair in zip(METHODS, each, strict=True)}


def read_gradients(model: Decoder, x: Float[Array, "t d"], target: Array, mode: FreezeMode) -> Float[Array, "e t d"]:
    """The gradient of the target in what each component alone reads, and then in what the output reads.

    That of what reads nothing, the embeddings and biases, is 0.
    """
    shape, factors, depth = places_of(model), stream_factors(model), model.layout.depth
    shapes = jax.eval_shape(lambda: _sites(model, x, mode))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    def value(probes: dict[str, Any], end: Array) -> Float[Array, ""]:
        stream, _ = model.scan(x, lambda own: Context(mode, Hooks(probes=own)), probes)
        return read_target(model, model.norm(stream + end, Context(mode))[-1], target, Context(mode))

    at_sites, at_end = jax.grad(value, argnums=(0, 1))(
        {kind: zeros[kind] for kind in (InnerSite.GATED_HEADS, InnerSite.MLP_IN)}, jnp.zeros_like(x)
    )

    def step(stream: Array, layer: Any) -> tuple[Array, Array]:
        block, schedule, factor, gradients, to_mlp = layer

        def heads(stream: Array) -> tuple[Array, Array]:
            ctx = Context(mode)
            after = block(stream, schedule, ctx)
            return ctx.hooks.values[InnerSite.GATED_HEADS], after

        _, pull, after = jax.vjp(heads, stream, has_aux=True)
        own = jnp.eye(gradients.shape[1], dtype=x.dtype)[:, None, :, None] * gradients[None]
        reads = jax.vmap(lambda each: pull(each)[0])(own)
        reads = jnp.pad(reads, [(0, shape.heads + shape.attn_bias - len(reads)), (0, 0), (0, 0)])
        return after, jnp.concatenate([reads, to_mlp[None]]) / factor

    stacks = (
        *(model.layers, model.schedule(len(x)), factors),
        *(at_sites[InnerSite.GATED_HEADS], at_sites[InnerSite.MLP_IN]),
    )
    with model.at_precision():
        _, reads = scan_layers(model.layout, step, x, stacks, 0, depth)
    return jnp.concatenate([jnp.zeros_like(x)[None], reads.reshape(-1, *x.shape), at_end[None]])


def _sites(model: Decoder, x: Float[Array, "t d"], mode: FreezeMode) -> dict[str, Any]:
    """The values at the sites of probes, of all layers."""
    kinds = (InnerSite.GATED_HEADS, InnerSite.MLP_IN)
    _, values = model.scan(
        x, lambda _: Context(mode), collect=lambda ctx: tuple(ctx.hooks.values[kind] for kind in kinds)
    )
    return dict(zip(kinds, values, strict=True))
