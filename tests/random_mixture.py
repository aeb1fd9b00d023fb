"""A small random mixture of experts that is built in memory, for tests that need one and no checkpoint."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.experts import ExpertConfig, ExpertMLP
from jaxlin.nn.modules import RMSNorm, without_values
from jaxlin.nn.ropes import no_rope
from jaxlin.nn.routers import SoftmaxRouter

D, F, SHARED, EXPERTS, CHOSEN, LAYERS = 16, 8, 6, 4, 2, 2


class Block(PreNorm):
    """A pre-norm block whose experts have the options of `Mixture`."""

    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: ExpertConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        router = SoftmaxRouter(D, config.num_experts, CHOSEN, renormalize=True, rngs=rngs)
        experts = ExpertMLP(config, router, **self.options, rngs=rngs)
        super().__init__(config, norm, Attention(config, rngs=rngs), experts)


def mixture(shared: int = 0, layers: int = LAYERS, experts: int = EXPERTS, **options: Any) -> Decoder:
    """A random model whose experts have these options."""

    class Mixture(Decoder):
        class Block(Block):
            pass

        def final_norm(self, config: Any) -> RMSNorm:
            return RMSNorm(config.hidden_size, config.norm_eps)

    Mixture.Block.options = options
    config = ExpertConfig(
        vocab_size=64, hidden_size=D, intermediate_size=F, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, norm_eps=1e-6, hidden_act="silu", max_position_embeddings=None,
        tie_word_embeddings=False, ropes=(no_rope(8),) * layers, windows=(None,) * layers, num_experts=experts,
        num_experts_per_tok=CHOSEN, moe_intermediate_size=F, shared_expert_intermediate_size=shared,
    )  # fmt: skip
    model, rng = without_values(lambda rngs: Mixture(config, rngs=rngs, dtype="float64")), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[-1] ** 0.5), model)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"shared": SHARED},
    "gated": {"shared": SHARED, "gated_shared": True},
    "input": {"weighs_input": True},
    "biases": {"bias": True, "shared": SHARED},
}
