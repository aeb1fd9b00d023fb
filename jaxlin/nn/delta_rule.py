r"""The gated delta rule as an attention pattern, dense or mixed chunk by chunk.

A head has a state $S$, ``[i, v]``, in which each token stores its value under its key, after it has taken out what the
state had there:

$$S_t = e^{g_t} S_{t-1} + \beta_t k_t \big(v_t - e^{g_t} S_{t-1}^\top k_t\big)^\top, \qquad o_t = S_t^\top q_t .$$

With queries, keys, strengths $\beta$ and decays $g \le 0$ frozen, this is linear in the values: $o_t = \sum_s p_{ts}
v_s$, with one lower triangular matrix a head, in which $D_{ts} = e^{g_{s+1} + \dots + g_t}$,

$$P = (Q K^\top \odot D)\,\big(I + \mathrm{tril}(\mathrm{diag}(\beta)\,K K^\top \odot D, -1)\big)^{-1}\,
\mathrm{diag}(\beta) .$$

Unlike probabilities its rows do not sum to one, and its entries may be negative. `Chunked` stores what defines it and
passes the state from chunk to chunk of tokens, in time linear in their number. A `Dense` pattern is that of the values
which are one for one token and zero for the others. Decays are added up within a chunk alone: the sum over a long
prompt is so large that float32 rounds off the difference of two neighbours.

Sources: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024, for the rule; Yang
et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, for the chunks.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.nn.blockwise import in_blocks
from jaxlin.nn.layers import at_least_float32, product
from jaxlin.nn.patterns import Dense, Pattern

CHUNK = 64
"""Tokens of a chunk: more cost more within it, fewer cost more steps."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chunked(Pattern):
    """The pattern of a gated delta rule, of which what defines it is stored.

    There are as many values as heads; head $h$ of $H$ has the query and key $⌊h n / H⌋$ of $n$.

    Attributes:
        q: the queries, normed and scaled, ``[t, n, i]``.
        k: the keys, normed, ``[t, n, i]``.
        beta: the strength of each update, ``[t, h]``; a token of strength 0 and decay 0 leaves the state as it is.
        log_decay: $g$, ``[t, h]``, at most 0.
    """

    q: Leaf
    k: Leaf
    beta: Leaf
    log_decay: Leaf

    def first(self, tokens: int) -> "Chunked":
        """The first tokens, which no later one affects."""
        q, k = self.q[..., :tokens, :, :], self.k[..., :tokens, :, :]
        return Chunked(q, k, self.beta[..., :tokens, :], self.log_decay[..., :tokens, :])

    def row(self, position: int | Int[Array, ""]) -> Float[Array, "h s"]:
        """The derivative of one output in all values, of which it is a linear function."""
        values = jax.ShapeDtypeStruct((*self.beta.shape, 1), self.q.dtype)
        transposed = jax.linear_transpose(lambda values: self.mix(values)[position], values)
        (row,) = transposed(jnp.ones((values.shape[1], 1), values.dtype))
        return row[..., 0].T

    def array(self) -> Float[Array, "h t s"]:
        """The numbers of the dense pattern."""
        return self.dense().probabilities

    def mix(self, values: Float[Array, "s *b h v"], last: int = 0) -> Float[Array, "q *b h v"]:
        """All queries pass through the chunks, because the state does; the last ones are returned."""
        t, *batch, h, v = values.shape
        by_head = jnp.moveaxis(values, -2, 1).reshape(t, h, -1)
        z, _ = self.update(by_head, jnp.zeros((h, self.q.shape[-1], by_head.shape[-1]), by_head.dtype))
        return jnp.moveaxis(z.reshape(t, h, *batch, v), 1, -2)[-last:]

    def update(
        self, values: Float[Array, "t h v"], state: Float[Array, "h i v"]
    ) -> tuple[Float[Array, "t h v"], Float[Array, "h i v"]]:
        """The outputs of tokens that follow those which left `state`, and the state that they leave."""
        (t, h, v), (_, n, i) = values.shape, self.q.shape
        size = min(CHUNK, t)
        chunks = jax.tree.map(lambda a: in_blocks(a, size), (self, values.reshape(t, n, h // n, v)))

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def body(state: Array, chunk: tuple[Chunked, Array]) -> tuple[Array, Array]:
            pattern, values = chunk
            z, state = pattern.step(jnp.moveaxis(values, 0, 2), state)
            return state, jnp.moveaxis(z, 2, 0).astype(values.dtype)

        wide = at_least_float32(state)
        state, z = jax.lax.scan(body, wide.reshape(n, h // n, i, v), chunks)
        return z.reshape(-1, h, v)[:t], state.reshape(h, i, v)

    def dense(self, dtype: Any = None) -> Dense:
        """All numbers of the pattern, in `dtype`, or in that of the queries.

        The loop is unrolled, because the value of a token is zero in all columns but its own: those of later tokens are
        left out, which is half of them.
        """
        t, n, i = self.q.shape
        h = self.beta.shape[-1]
        state = jnp.zeros((n, h // n, i, 0), jnp.promote_types(self.q.dtype, jnp.float32))
        rows = []
        for start in range(0, t, CHUNK):
            stop = min(start + CHUNK, t)
            chunk = jax.tree.map(lambda a, start=start, stop=stop: a[start:stop], self)
            state = jnp.pad(state, [(0, 0)] * 3 + [(0, stop - start)])
            values = jnp.eye(stop - start, stop, start, dtype=state.dtype)
            z, state = chunk.step(values[None, None], state)
            rows.append(jnp.pad(z, [(0, 0)] * 3 + [(0, t - stop)]))
        return Dense(jnp.concatenate(rows, axis=2).reshape(h, t, t).astype(dtype or self.q.dtype))

    def step(
        self, values: Float[Array, "#n #g t v"], state: Float[Array, "n g i v"]
    ) -> tuple[Float[Array, "n g t v"], Float[Array, "n g i v"]]:
        r"""The outputs of one chunk, and the state after it.

        With $c_t = g_1 + \dots + g_t$ in the chunk, the values that its tokens add to the state solve
        $(I + \mathrm{tril}(\mathrm{diag}(\beta) K K^\top \odot D, -1))\,U = \mathrm{diag}(\beta)(V - e^c K S)$.
        """
        t, n, _ = self.q.shape
        q, k = at_least_float32(self.q), at_least_float32(self.k)
        beta, log_decay = (at_least_float32(a).T.reshape(n, -1, t) for a in (self.beta, self.log_decay))
        c = jnp.cumsum(log_decay, axis=-1)
        # Masked before the exponential: that of a sum of later decays overflows, and its derivative is NaN.
        is_causal = jnp.tril(jnp.ones((t, t), bool))[None, None]
        decay = jnp.exp(jnp.where(is_causal, c[..., :, None] - c[..., None, :], -jnp.inf))
        overlaps = product("tni,sni->nts", k, k)[:, None] * decay
        reads = product("tni,sni->nts", q, k)[:, None] * decay
        inverse = unit_inverse(jnp.tril(beta[..., None] * overlaps, -1))
        beta, since_start, until_end = beta[..., None], jnp.exp(c)[..., None], jnp.exp(c[..., -1:] - c)[..., None]
        stored = product("tni,ngiv->ngtv", k, state) * since_start
        added = product("ngts,ngsv->ngtv", inverse, beta * (at_least_float32(values) - stored))
        z = product("tni,ngiv->ngtv", q, state) * since_start + product("ngts,ngsv->ngtv", reads, added)
        return z, state * since_start[..., -1:, :] + product("tni,ngtv->ngiv", k, until_end * added)


def unit_inverse(lower: Float[Array, "*b t t"]) -> Float[Array, "*b t t"]:
    r"""$(I + L)^{-1}$ of a strictly lower triangular $L$, by products alone.

    The inverses of blocks on the diagonal give those of twice the size,

    $$\begin{pmatrix} A & 0 \\ B & C \end{pmatrix}^{-1} =
    \begin{pmatrix} A^{-1} & 0 \\ -C^{-1} B A^{-1} & C^{-1} \end{pmatrix},$$

    which is as stable as to solve row by row. The series of powers of $L$ is not: they may be as large as binomials.
    """
    *batch, t, _ = lower.shape
    full = 1 << (t - 1).bit_length()
    lower = jnp.pad(lower, [(0, 0)] * len(batch) + [(0, full - t)] * 2)
    inverse, size = jnp.ones((*batch, full, 1, 1), lower.dtype), 1
    while size < full:
        pairs = full // (2 * size)
        blocks = jnp.einsum("...aiaj->...aij", lower.reshape(*batch, pairs, 2 * size, pairs, 2 * size))
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        below = -product("...ij,...jk,...kl->...il", second, blocks[..., size:, :size], first)
        inverse = jnp.block([[first, jnp.zeros_like(first)], [below, second]])
        size *= 2
    return inverse[..., 0, :t, :t]
