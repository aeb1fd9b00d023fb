r"""OLMo 2 and 3: norms stand after attention and MLP, and queries and keys are normed over their full width.

"2 OLMo 2 Furious", 2024; "Olmo 3", 2025.

- ``olmo2``: no norm before attention and MLP, one after each.
- ``olmo3``: three sliding layers to a full one; YaRN in the full ones only.
"""

import functools
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.olmo import OlmoConfig
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PostNorm
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.porting.fields import decoder_numbers, layer_types, one_layer_type, rope_of, ropes_by_type, windows
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort, sliding_types
from jaxlin.porting.port import Port


class WidthNormAttention(Attention):
    """Attention whose queries and keys are normed over all heads together, before they are split."""

    def __init__(self, config: OlmoConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, bias=config.attention_bias, out_bias=config.attention_bias, rngs=rngs)
        self.q_norm = RMSNorm(config.num_attention_heads * config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.num_key_value_heads * config.head_dim, config.norm_eps)

    def queries_and_keys(
        self, x: Float[Array, "t d"], ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys before rotation, normed."""
        q = self.q_norm(self.q_proj(x), ctx.within("q_norm"))
        return self.split(q), self.split(self.k_norm(self.k_proj(x), ctx.within("k_norm")))


class Olmo2Block(PostNorm):
    """RMSNorm after attention and after the MLP, none before."""

    def __init__(self, config: OlmoConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        super().__init__(config, norm, WidthNormAttention(config, rngs=rngs), GatedMLP(config, rngs=rngs))


class Olmo2(Decoder):
    """The decoder of OLMo 2 and 3."""

    Block = Olmo2Block

    def final_norm(self, config: Config) -> Any:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, config.norm_eps)


def olmo2_config(json: ConfigReader) -> OlmoConfig:
    """The config of OLMo 2."""
    numbers = decoder_numbers(json, norm_eps=1e-5, max_position_embeddings=2048)
    depth = numbers["num_hidden_layers"]
    one_layer_type(json, depth)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    bias = json.take("attention_bias", bool, False)
    return OlmoConfig(**numbers, ropes=(rope,) * depth, windows=(None,) * depth, attention_bias=bias)


def olmo3_config(json: ConfigReader) -> OlmoConfig:
    """The config of Olmo 3."""
    numbers = decoder_numbers(json, norm_eps=1e-5, max_position_embeddings=2048)
    types = layer_types(json, numbers["num_hidden_layers"], lambda i: (i + 1) % 4 != 0)
    # In transformers a `rope_theta` beside the parameters is the full layers' alone.
    theta = {"full_attention": json.take("rope_theta", float, 5e5), "sliding_attention": 5e5}
    ropes = ropes_by_type(json, numbers["head_dim"], numbers["max_position_embeddings"], theta)
    return OlmoConfig(
        **numbers,
        ropes=tuple(ropes[kind] for kind in types),
        windows=windows(json, types, json.positive_or_none("sliding_window", 4096)),
        attention_bias=json.take("attention_bias", bool, False),
    )


PORTS = {"olmo2": Port(Olmo2, olmo2_config), "olmo3": Port(Olmo2, olmo3_config)}


def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """GGUF has one architecture for both versions: a file with a window is Olmo 3."""
    if not metadata.get("attention.sliding_window"):
        return {"sliding_window": None}
    base = metadata.get("rope.freq_base_swa", config.get("rope_theta"))
    ropes = {"rope_parameters": {"sliding_attention": {"rope_theta": base}}}
    return {"model_type": "olmo3", **ropes, **sliding_types(metadata, config, period=4)}


GGUF = {
    "olmo2": GGUFPort(
        model_type="olmo2",
        keys={**RMS_NORM, "attention.sliding_window": "sliding_window"},
        read=("attention.sliding_window_pattern", "rope.freq_base_swa"),
        derive=derive,
    ),
}
