r"""The attention pattern of queries and keys, dense or, for long prompts, recomputed block by block."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.nn.blockwise import blocked_pattern
from jaxlin.nn.patterns import Dense, Pattern, scores, visible

MAX_DENSE_QUERIES = 1024
"""Patterns of no more queries than this are stored as arrays: 4 MiB a head and layer in float32."""


def attention_pattern(
    q: Float[Array, "t h k"],
    k: Float[Array, "s n k"],
    *,
    positions: Int[Array, " t"],
    scale: float,
    window: Int[Array, ""],
    softcap: float | None = None,
) -> Pattern:
    r"""Causal attention probabilities $\mathrm{softmax}_s(q_t \cdot k_s\,\text{scale})$ over $t - w < s \le t$.

    Queries stand at `positions`, key $s$ at position $s$. A window counts the token itself. `softcap` $c$ turns a score
    $z$ into $c \tanh(z / c)$ (Gemma 2).
    """
    if q.shape[0] > MAX_DENSE_QUERIES:
        return blocked_pattern(q, k, positions=positions, scale=scale, window=window, softcap=softcap)
    z = scores(q, k, scale, softcap)
    mask = visible(positions, jnp.arange(k.shape[0]), window)
    return Dense(jax.nn.softmax(jnp.where(mask[None], z, -jnp.inf), axis=-1).astype(q.dtype))
