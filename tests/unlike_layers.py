"""A small random decoder whose layers are of two kinds, with parameters of other shapes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlin.models.llama import Llama, LlamaConfig
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm, UndrawnRngs
from jaxlin.porting.rope_parameters import rope_from_parameters

KINDS = {
    "narrow": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24},
    "wide": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 40},
}
"""The sizes of each kind of layer."""

LAYERS = ("narrow", "narrow", "wide") * 2 + ("wide",)


class UnlikeLayers(Llama):
    """Llama with layers of two kinds: of other widths, and with biases in the wide ones alone."""

    def make_block(self, config: Any, kind: str, rngs: nnx.Rngs) -> PreNorm:
        """A block of `kind`."""
        sizes, biased = dataclasses.replace(config, **KINDS[kind]), kind == "wide"
        attention = Attention(sizes, bias=biased, out_bias=biased, rngs=rngs)
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        return PreNorm(sizes, norm, attention, GatedMLP(sizes, bias=biased, rngs=rngs))


def build(kinds: tuple[str, ...] = LAYERS, **options: Any) -> Decoder:
    """A model with layers of these kinds, every parameter drawn."""
    ropes = {k: rope_from_parameters({}, dim=k, theta=1e4, max_position_embeddings=64) for k in (8, 16)}
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        **KINDS["wide"],
        num_hidden_layers=len(kinds),
        norm_eps=1e-5,
        hidden_act="silu",
        max_position_embeddings=64,
        tie_word_embeddings=True,
        ropes=tuple(ropes[KINDS[kind]["head_dim"]] for kind in kinds),
        windows=tuple(None if kind == "wide" else 4 for kind in kinds),
        layer_kinds=kinds,
        attention_bias=True,
        mlp_bias=True,
    )
    rng = np.random.default_rng(0)
    model = UnlikeLayers(config, rngs=UndrawnRngs(0), **options)
    return jax.tree.map(lambda a: a + jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), model)
