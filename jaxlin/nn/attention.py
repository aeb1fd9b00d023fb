r"""Attention as $A(x)\,x$: the pattern, which is held, and the mixing of values, which is linear.

Shapes are those of `jaxlin.nn.layers`. A pattern is an array of probabilities, or, where that would be too long to
keep, the queries, keys and normalisers to compute it again by blocks: see `jaxlin.nn.blockwise`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.nn.blockwise import BlockedPattern, blocked_attend, blocked_pattern, mix, scores, visible

WHOLE = 1024
"""Patterns of no more queries than this are kept as arrays: 4 MiB a head and layer in float32."""

Pattern = Float[Array, "h t s"] | BlockedPattern


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
    if q.shape[0] > WHOLE:
        return blocked_pattern(q, k, positions=positions, scale=scale, window=window, softcap=softcap)
    z = scores(q, k, scale, softcap)
    seen = visible(positions, jnp.arange(k.shape[0]), window)
    return jax.nn.softmax(jnp.where(seen[None], z, -jnp.inf), axis=-1).astype(q.dtype)


def first_tokens(pattern: Any, tokens: int) -> Any:
    """A pattern, or a stack of them, of the first `tokens` queries, which see no later key."""
    return pattern.first(tokens) if isinstance(pattern, BlockedPattern) else pattern[..., :tokens, :tokens]


def row_of(pattern: Pattern, position: int | Int[Array, ""]) -> Float[Array, "h s"]:
    """The probabilities of the query at `position`."""
    return pattern.row(position) if isinstance(pattern, BlockedPattern) else pattern[:, position]


def attend(pattern: Pattern, v: Float[Array, "s *b n k"], queries: int = 0) -> Float[Array, "q *b h k"]:
    r"""$\sum_s p_{hts}\,v_s$: linear in the values; query head $h$ reads key-value head $\lfloor h n / H \rfloor$.

    Of the last `queries` positions only; 0 for all.
    """
    if isinstance(pattern, BlockedPattern):
        return blocked_attend(pattern.last(queries), v)
    return mix(pattern[:, -queries:], v)
