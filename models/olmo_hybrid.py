r"""OLMo Hybrid: layers of a gated delta rule with norms before, and layers of OLMo 2's attention with norms after.

Ai2, "Olmo Hybrid", 2026. The delta rule's strength goes up to 2, so that a token may turn what the state has under its
key into its negative; queries, keys and values each have a projection and a convolution. Attention rotates only if the
config has a base of rotary positions. The norm of the heads adds 1e-5 under the root whatever the config says.
"""

import functools
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.models.olmo import OlmoConfig
from jaxlin.models.olmo2 import Olmo2, Olmo2Block
from jaxlin.nn.blocks import LinearPreNorm, PostNorm
from jaxlin.nn.gated_delta_net import DeltaNetSizes, GatedDeltaNet
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.ropes import Rope, no_rope
from jaxlin.porting.fields import decoder_numbers, rope_of, rope_parameters
from jaxlin.porting.hybrid_fields import FULL, LINEAR, delta_net_sizes, hybrid_layer_types
from jaxlin.porting.port import Names, Port
from jaxlin.porting.tensor_rows import either, stacked_rows

DEFAULT_THETA = 1e4
"""The base of rotary positions where a config has no key for it."""

CONVOLUTION = "linear_attn.conv1d.weight"
"""The convolutions of queries, keys and values in one tensor."""

HEAD_NORM_EPS = 1e-5
"""The number added under the root of the norm of the heads of the delta rule."""


@dataclass(frozen=True, kw_only=True)
class OlmoHybridConfig(OlmoConfig):
    """`OlmoConfig`, and the delta rule.

    Attributes:
        delta_net: its sizes.
        strength: its largest strength, 2 where eigenvalues may be negative, otherwise 1.
    """

    delta_net: DeltaNetSizes
    strength: float

    @property
    def split_sizes(self) -> dict[str, int]:
        """Those of `Config`, and the heads of the delta rule."""
        return {**super().split_sizes, **self.delta_net.split_sizes}


class OlmoLinearBlock(LinearPreNorm):
    """RMSNorms before a gated delta rule and before the MLP."""

    def __init__(self, config: OlmoHybridConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        delta_net = GatedDeltaNet(
            *(config.hidden_size, config.delta_net),
            act=config.hidden_act,
            norm_eps=HEAD_NORM_EPS,
            strength=config.strength,
            rngs=rngs,
        )
        super().__init__(config, norm, delta_net, GatedMLP(config, rngs=rngs))


class OlmoHybrid(Olmo2):
    """The decoder of OLMo Hybrid."""

    def make_block(self, config: OlmoHybridConfig, kind: str, rngs: nnx.Rngs) -> LinearPreNorm | PostNorm:
        """A layer of a delta rule, or one of attention."""
        return (OlmoLinearBlock if kind == LINEAR else Olmo2Block)(config, rngs=rngs)


def olmo_rope(json: ConfigReader, head_dim: int, length: int) -> Rope:
    """The rotation of attention: none if its base is null, which is not to be without the key."""
    parameters = rope_parameters(json)
    if "rope_type" in parameters and parameters["rope_type"] is None:
        raise json.error("rope_parameters", 'a "rope_type", or null as "rope_theta" for no rotation', "null")
    if parameters.get("rope_theta", json.optional("rope_theta", float, DEFAULT_THETA)) is not None:
        return rope_of(json, head_dim, length, theta=DEFAULT_THETA)
    json.leave_out("partial_rotary_factor", "original_max_position_embeddings")
    return no_rope(head_dim)


def olmo_hybrid_config(json: ConfigReader) -> OlmoHybridConfig:
    """The config of OLMo Hybrid."""
    sizes: dict[str, Any] = {"num_attention_heads": 30, "intermediate_size": 11008, "vocab_size": 100352}
    numbers = decoder_numbers(json, max_position_embeddings=65536, **sizes)
    depth, heads = numbers["num_hidden_layers"], numbers["num_attention_heads"]
    rope = olmo_rope(json, numbers["head_dim"], numbers["max_position_embeddings"])
    last = depth - 1 if depth < 4 else -1  # a shallow model has attention in its last layer
    types = hybrid_layer_types(json, depth, lambda i: i % 4 != 3 and i != last)
    if len(set(types)) == 1:
        raise json.error("layer_types", f"layers of {LINEAR} and of {FULL}", f"{types[0]} alone")
    negative = json.take("linear_allow_neg_eigval", bool, True)
    return OlmoHybridConfig(
        **numbers,
        ropes=(rope,) * depth,
        windows=(None,) * depth,
        layer_kinds=types,
        attention_bias=json.take("attention_bias", bool, False),
        delta_net=delta_net_sizes(json, key_heads=heads, value_heads=heads, key_dim=None, value_dim=None),
        strength=2.0 if negative else 1.0,
    )


def key_and_value_channels(config: OlmoHybridConfig) -> tuple[int, int]:
    """The channels of keys, or of queries, and of values."""
    sizes = config.delta_net
    return sizes.key_heads * sizes.key_dim, sizes.value_heads * sizes.value_dim


def olmo_hybrid_names(config: OlmoHybridConfig) -> Names:
    """The names of the hub, and those of the modules in transformers, which call norms and convolutions otherwise.

    Before the MLP of a layer of the delta rule, and after attention in the others, the hub's files have
    ``feedforward_layer_norm``.
    """
    keys, values = key_and_value_channels(config)
    fused = stacked_rows(CONVOLUTION, q_conv1d=keys, k_conv1d=keys, v_conv1d=values)
    norms = {"input_layernorm": "attention_layer_norm", "post_attention_layernorm": "feedforward_layer_norm"}
    return either(
        {path: path for path in fused} | {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in norms.items()},
        {**fused, **{f"{ours}.weight": f"{ours}.weight" for ours in norms}},
    )


def olmo_hybrid_joined(config: OlmoHybridConfig) -> dict[str, dict[str, int]]:
    """The convolutions: transformers cuts their one tensor into thirds when it saves it, whatever the sizes are."""
    keys, values = key_and_value_channels(config)
    channels = {"q_conv1d": keys, "k_conv1d": keys, "v_conv1d": values}
    return {CONVOLUTION: {f"linear_attn.{name}.weight": count for name, count in channels.items()}}


PORTS = {
    "olmo_hybrid": Port(OlmoHybrid, olmo_hybrid_config, names=olmo_hybrid_names, joined=olmo_hybrid_joined),
}
