"""A small random Llama that is built in memory, for tests that need a model and no checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlin.models.llama import Llama, LlamaConfig
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.modules import UndrawnRngs
from jaxlin.porting.rope_parameters import rope_from_parameters

IDS = [3, 1, 4, 1, 5, 9, 2]
ROPE = rope_from_parameters({}, dim=8, theta=1e4, max_position_embeddings=64)


def build(
    layers: int = 3, *, biases: bool = True, seed: int = 0, size: tuple[int, int] = (32, 48), **options: object
) -> Decoder:
    """A small random Llama, every parameter drawn."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=size[0],
        intermediate_size=size[1],
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        norm_eps=1e-5,
        hidden_act="silu",
        max_position_embeddings=64,
        tie_word_embeddings=True,
        ropes=(ROPE,) * layers,
        windows=(None,) * layers,
        attention_bias=biases,
        mlp_bias=biases,
    )
    rng = np.random.default_rng(seed)
    model = Llama(config, rngs=UndrawnRngs(0), **options)
    return jax.tree.map(lambda a: a + jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), model)
