r"""Mistral: Llama's block without biases, whose queries may see a sliding window.

Jiang et al., "Mistral 7B", 2023; the Ministral and Mistral 3 model cards, 2024 and 2025.

- ``mistral``: one window for all layers, or none.
- ``ministral``: full and sliding layers by `layer_types`, also written as ``mistral`` with that key.
- ``ministral3``: YaRN, and queries scaled by $1 + \beta \ln(1 + \lfloor p / p_0 \rfloor)$ at position $p$.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxlin.checkpoint.config import ConfigReader, is_number
from jaxlin.common.printable import quoted
from jaxlin.models.llama import Llama
from jaxlin.nn.attention import Attention
from jaxlin.nn.blocks import PreNorm
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.layers import query_growth
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import RMSNorm
from jaxlin.nn.schedule import Schedule
from jaxlin.porting.fields import check_uniform, decoder_numbers, layer_types, rope_of, rope_parameters, windows
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class MistralConfig(Config):
    r"""`Config`, and how queries grow with their position.

    Attributes:
        query_beta: $\beta$; 0 for queries that do not grow.
        query_length: $p_0$, tokens.
    """

    query_beta: float = 0.0
    query_length: int = 1


class GrowingAttention(Attention):
    """Attention whose queries grow with their position, after rotation, so that far keys do not lose their weight."""

    def __init__(self, config: MistralConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.beta, self.length = config.query_beta, config.query_length

    def rotated(
        self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """Queries and keys after rotation, the queries grown."""
        q, k = super().rotated(x, schedule, ctx)
        return q * query_growth(schedule.positions, self.beta, self.length, q), k


class MistralBlock(PreNorm):
    """Llama's block without biases."""

    def __init__(self, config: MistralConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, eps=config.norm_eps)
        attention = (GrowingAttention if config.query_beta else Attention)(config, rngs=rngs)
        super().__init__(config, norm, attention, GatedMLP(config, rngs=rngs))


class Mistral(Llama):
    """The Mistral decoder."""

    Block = MistralBlock


def mistral_config(json: ConfigReader, *, wrapped: bool = False) -> MistralConfig:
    """The config of Mistral and Ministral. A window of null means none; without the key there is the default one."""
    numbers = decoder_numbers(json, num_key_value_heads=8, max_position_embeddings=131_072)
    depth = numbers["num_hidden_layers"]
    window = json.positive_or_none("sliding_window", 4096)
    types = layer_types(json, depth, lambda i: window is not None)
    if wrapped:  # transformers reads `layer_types` as Ministral's in a file of its own only
        check_uniform(json, types, window)
    rope = rope_of(json, numbers["head_dim"], numbers["max_position_embeddings"])
    return MistralConfig(**numbers, ropes=(rope,) * depth, windows=windows(json, types, window))


def ministral3_config(json: ConfigReader) -> MistralConfig:
    """The config of Ministral 3."""
    numbers = decoder_numbers(json, norm_eps=1e-5, num_key_value_heads=8, head_dim=128, max_position_embeddings=262_144)
    depth, length = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    default = {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    }  # fmt: skip
    parameters: dict[str, Any] = rope_parameters(json) or default
    beta = parameters.get("llama_4_scaling_beta") or 0.0
    trained = "original_max_position_embeddings"
    first = json.peek(trained) or parameters.get(trained) or length
    if not is_number(beta) or type(first) is not int or first < 1:
        raise json.error(
            "rope_parameters", f"numbers under llama_4_scaling_beta and {trained}",
            f"{quoted(beta)} and {quoted(first)}",
        )  # fmt: skip
    rope = rope_of(json, numbers["head_dim"], length, default=default, extra=("llama_4_scaling_beta",))
    window = json.positive_or_none("sliding_window", None)
    types = layer_types(json, depth, lambda i: window is not None)
    check_uniform(json, types, window)
    return MistralConfig(
        **numbers,
        ropes=(rope,) * depth,
        windows=windows(json, types, window),
        query_beta=float(beta),
        query_length=first,
    )


PORTS = {
    "mistral": Port(Mistral, mistral_config),
    "ministral": Port(Mistral, mistral_config),
    "ministral3": Port(Mistral, ministral3_config),
}


def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope parameters under the names of Ministral 3, whose defaults are those of a Mistral without them."""
    parameters = {"rope_type": "default", **config.get("rope_scaling", {})}
    parameters["llama_4_scaling_beta"] = metadata.get("attention.temperature_scale", 0.0)
    return {"rope_parameters": parameters, "rope_scaling": None}


GGUF = {
    "mistral3": GGUFPort(model_type="ministral3", read=("attention.temperature_scale",), derive=derive, pairs=True),
}
