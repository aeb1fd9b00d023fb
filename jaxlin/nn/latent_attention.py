r"""Multi-head latent attention: the keys and values of all heads are read from one short vector of each token.

At each token a latent $c = \mathrm{norm}(W_a x)$ of `kv_lora_rank` features is computed. Head $h$ has the key
$[\mathrm{rope}(W_r x);\, K_h c]$, whose rotated part all heads share, and the value $v_h = V_h c$. Queries come from a
latent of their own, or from the stream. So the linear path through attention is

$$x \mapsto V_h\,\mathrm{diag}(w)\,W_a x \cdot \text{inverse root},$$

and beside the pattern the inverse root of that one norm is frozen. All else lies within the pattern.

Source: DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, section 2.1.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn import layers
from jaxlin.nn.attention import OutputProjection, SoftmaxAttention, split_heads
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.modules import Linear, RMSNorm
from jaxlin.nn.schedule import Schedule

LATENT_EPS = 1e-6
"""The number added under the root of the norms of latents, whatever that of the other norms is."""


@dataclass(frozen=True, kw_only=True)
class LatentConfig(Config):
    r"""`Config`, and the sizes of latent attention; `head_dim` counts the features of queries and keys.

    Attributes:
        q_lora_rank: features of the latent of queries; None where queries are projected from the stream.
        kv_lora_rank: features of the latent of keys and values.
        qk_rope_head_dim: how many features of a query or key are rotated: the first.
        v_head_dim: features of a value.
        attention_scale: the factor of the scores.
        attention_bias: whether the projections to the latents and the output projection have biases.
        query_beta: $\beta$ of `jaxlin.nn.layers.query_growth`; 0 for queries that do not grow.
        query_length: its $p_0$, tokens.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_scale: float
    attention_bias: bool
    query_beta: float = 0.0
    query_length: int = 1


class LatentAttention(SoftmaxAttention):
    """Multi-head latent attention.

    `kv_a_proj` and `k_rope_proj` are $W_a$ and $W_r$, `k_b_proj` and `v_b_proj` have the rows of all $K_h$ and $V_h$.
    The cache of a generation has keys and values of each head, as that of `Attention`, not the latents.
    """

    def __init__(self, config: LatentConfig, *, rngs: nnx.Rngs) -> None:
        d, h, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        rotated, rank = config.qk_rope_head_dim, config.kv_lora_rank
        self.head_dim, self.v_head_dim, self.q_lora_rank = config.head_dim, config.v_head_dim, config.q_lora_rank
        self.scale, self.beta, self.length = config.attention_scale, config.query_beta, config.query_length
        linear = functools.partial(Linear, rngs=rngs)
        if config.q_lora_rank is None:
            self.q_proj = linear(d, h * self.head_dim)
        else:
            self.q_a_proj = linear(d, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_EPS)
            self.q_b_proj = linear(config.q_lora_rank, h * self.head_dim)
        self.kv_a_proj, self.k_rope_proj = linear(d, rank, bias=bias), linear(d, rotated, bias=bias)
        self.kv_a_layernorm = RMSNorm(rank, LATENT_EPS)
        self.k_b_proj = linear(rank, h * (self.head_dim - rotated))
        self.v_b_proj = linear(rank, h * self.v_head_dim)
        self.o_proj = OutputProjection(h * self.v_head_dim, d, bias=bias, rngs=rngs)

    def rotated(
        self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t h k"]]:
        """Queries and keys after rotation, the rotated features first, the queries grown."""
        positions = schedule.positions
        q = layers.rope(self.queries(x, ctx), schedule.inv_freq, schedule.rope_scale, positions)
        if self.beta:
            q = q * layers.query_growth(positions, self.beta, self.length, q)
        return q, self.keys(x, schedule, ctx)

    def queries(self, x: Float[Array, "t d"], ctx: Context) -> Float[Array, "t h k"]:
        """Queries before rotation, the features to rotate first."""
        if self.q_lora_rank is None:
            return split_heads(self.q_proj(x), self.head_dim)
        latent = self.q_a_layernorm(self.q_a_proj(x), ctx.within("q_a_layernorm"))
        return split_heads(self.q_b_proj(latent), self.head_dim)

    def keys(self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context) -> Float[Array, "t h k"]:
        """Keys after rotation, the rotated features first."""
        rotated = self.k_rope_proj(x)[:, None, :]
        rotated = layers.rope(rotated, schedule.inv_freq, schedule.rope_scale, schedule.positions)
        rest = split_heads(self.k_b_proj(self.value_input(x, ctx)), self.head_dim - rotated.shape[-1])
        return jnp.concatenate([jnp.broadcast_to(rotated, (*rest.shape[:-1], rotated.shape[-1])), rest], axis=-1)

    @property
    def value_proj(self) -> Linear:
        """`v_b_proj`."""
        return self.v_b_proj

    @property
    def value_dim(self) -> int:
        """`v_head_dim`."""
        return self.v_head_dim

    def value_input(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b c"]:
        """The normed latent of keys and values."""
        return self.kv_a_layernorm(self.kv_a_proj(x), ctx.within("kv_a_layernorm"))
