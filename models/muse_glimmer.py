r"""Muse Glimmer: Gemma's sandwich of norms, gated heads, and layers without rotation that see everything.

Of every four layers, counted from the last, three rotate and slide and the last does neither. The embeddings, queries
and keys are normed without a weight, each head is multiplied by a sigmoid of the stream, and the logits have a factor
before their softcap. Gates: Qiu et al., "Gated Attention for Large Language Models", 2025.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.checkpoint.config import ConfigReader, is_number
from jaxlin.common.printable import quoted
from jaxlin.models.gemma import OffsetRMSNorm
from jaxlin.nn import layers
from jaxlin.nn.attention import HeadNormAttention
from jaxlin.nn.blocks import Sandwich
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import Linear, RMSNorm
from jaxlin.nn.ropes import no_rope
from jaxlin.porting.fields import decoder_numbers, layer_types, rope_of, windows
from jaxlin.porting.port import Port


@dataclass(frozen=True, kw_only=True)
class MuseGlimmerConfig(Config):
    """`Config`, the factor of normed queries, the epsilon of the norms after attention and MLP, and biases."""

    attention_bias: bool
    qk_scale_factor: float
    post_norm_eps: float


class MuseGlimmerAttention(HeadNormAttention):
    """Attention whose queries and keys are normed, and whose heads are multiplied by a gate."""

    def __init__(self, config: MuseGlimmerConfig, *, rngs: nnx.Rngs) -> None:
        scale, bias = config.qk_scale_factor * config.head_dim**-0.5, config.attention_bias
        norm = functools.partial(RMSNorm, eps=config.norm_eps, affine=False)
        super().__init__(config, norm=norm, scale=scale, bias=bias, out_bias=bias, rngs=rngs)
        self.gate_proj = Linear(config.hidden_size, config.num_attention_heads * config.head_dim, rngs=rngs)

    def gated(self, z: Float[Array, "q *b h k"], x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "q *b h k"]:
        r"""$z \odot \sigma(G x)$, whose second factor is frozen."""
        gate = ctx.freeze("gate", lambda: self.split(jax.nn.sigmoid(self.gate_proj(x))))
        return z * layers.rows_for(gate, z)


class MuseGlimmerBlock(Sandwich):
    """Norms before and after attention and the MLP, whose weights are stored as their difference from one."""

    def __init__(self, config: MuseGlimmerConfig, *, rngs: nnx.Rngs) -> None:
        norm, post_norm = (functools.partial(OffsetRMSNorm, eps=eps) for eps in (config.norm_eps, config.post_norm_eps))
        attention, mlp = MuseGlimmerAttention(config, rngs=rngs), GatedMLP(config, rngs=rngs)
        super().__init__(config, norm, attention, mlp, post_norm=post_norm)


class MuseGlimmer(Decoder):
    """The decoder of Muse Glimmer."""

    Block = MuseGlimmerBlock

    def final_norm(self, config: Config) -> RMSNorm:
        """RMSNorm, with its weight as it is."""
        return RMSNorm(config.hidden_size, config.norm_eps)

    def embed(self, ids: Any | Int[Array, " t"], start: Any = 0) -> Float[Array, "t d"]:
        """The normed embeddings, which enter the first block: the local linear map is linear in them."""
        return layers.rms_norm(super().embed(ids, start), None, self.config.norm_eps, Context())


def muse_glimmer_config(json: ConfigReader) -> MuseGlimmerConfig:
    """The config of the text half of the multimodal wrapper, whose own `tie_word_embeddings` counts."""
    json.leave_out("vision_config", "image_token_id", "video_token_id")
    json.leave_out("out_hidden_size", "projector_hidden_size", "projector_hidden_act")
    text = json.part("text_config")
    text.override("tie_word_embeddings", json.take("tie_word_embeddings", bool, False))
    numbers = decoder_numbers(
        text, act_key="hidden_activation", norm_eps=1e-5, head_dim=128, num_attention_heads=32, num_key_value_heads=2,
        vocab_size=202_048, max_position_embeddings=131_072,
    )  # fmt: skip
    depth, head_dim = numbers["num_hidden_layers"], numbers["head_dim"]
    slides = [(depth - 1 - layer) % 4 != 0 for layer in range(depth)]
    types = layer_types(text, depth, slides.__getitem__)
    bases = text.take("layer_rope_theta", list, None)
    if bases is not None and (len(bases) != depth or not all(map(is_number, bases))):
        raise text.error("layer_rope_theta", f"{depth} numbers", quoted(bases))
    # transformers reads of each number only whether it is 0: all layers that rotate have the base of the rope.
    rope, none = rope_of(text, head_dim, numbers["max_position_embeddings"]), no_rope(head_dim)
    post_norm_eps, cap = text.take("post_norm_eps", float, 1e-8), text.take("final_logit_softcapping", float, 20.0)
    return MuseGlimmerConfig(
        **numbers,
        ropes=tuple(rope if rotates else none for rotates in (slides if bases is None else bases)),
        windows=windows(text, types, text.positive_or_none("sliding_window", 2048)),
        attention_bias=text.take("attention_bias", bool, False),
        qk_scale_factor=text.take("qk_scale_factor", float, 3.87),
        post_norm_eps=text.above_zero("post_norm_eps", post_norm_eps),
        logit_scale=text.take("output_multiplier", float, 0.19611613513818404),
        final_logit_softcapping=text.above_zero("final_logit_softcapping", cap),
    )


VISION = {
    f"{body}{part}.*": "the vision half of the model"
    for body in ("", "model.")
    for part in ("vision_tower", "vision_adapter", "vision_projection")
}

PORTS = {
    "muse_glimmer": Port(
        MuseGlimmer,
        muse_glimmer_config,
        bodies=("model.language_model.", "language_model."),
        left_out=VISION,
    ),
}
