r"""The decoder of Gemma 4: its kinds of layers, shared values and per-layer embeddings.

A block ends with a factor of the stream, ``layer_scalar``. The last layers may have no keys and values: they read those
of the last layer of their type that has. With *per-layer embeddings* a layer adds $W_o(\mathrm{act}(g) \odot u)$, for
the gate $g = W_g h$ of the stream and a row $u$ of a second embedding, plus a projection of the input embeddings. With
$u \odot \mathrm{act}(g) / g$ frozen this is linear in the stream: no part of it is a constant, and none comes from the
input embeddings directly.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.models.gemma import Gemma
from jaxlin.nn import layers
from jaxlin.nn.block_input import BlockInput
from jaxlin.nn.blocks import Sandwich
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.experts import ExpertConfig
from jaxlin.nn.mlp import GatedMLP
from jaxlin.nn.modules import Embedding, Linear, RMSNorm
from jaxlin.nn.prompt import Prompt, PromptError
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.shared_attention import SharedAttention, SourceAttention, ValueNormAttention
from jaxlin.nn.sites import KINDS, ORDER

SLIDING, FULL, SHARED = "sliding_attention", "full_attention", "shared_"
"""The types of attention, and what the kind of a layer that reads an earlier one's values begins with."""


@dataclass(frozen=True, kw_only=True)
class Gemma4Config(ExpertConfig):
    """`ExpertConfig`, whose heads are those of the sliding layers and whose MLP is that of layers with own values.

    Without experts their numbers are 0.

    Attributes:
        attention_bias: whether the projections of attention have biases.
        full_head_dim: features of a head in full layers.
        full_key_value_heads: key-value heads in full layers.
        keys_are_values: whether one projection gives keys and values in full layers.
        shared_intermediate_size: hidden features of an MLP in layers that read an earlier one's values.
        hidden_size_per_layer_input: features of the per-layer embeddings; 0 for none.
        vocab_size_per_layer_input: rows of their table.
    """

    attention_bias: bool
    full_head_dim: int
    full_key_value_heads: int
    keys_are_values: bool
    shared_intermediate_size: int
    hidden_size_per_layer_input: int
    vocab_size_per_layer_input: int

    @property
    def neurons(self) -> int:
        """Those of the widest MLP, and of the chosen experts beside it."""
        return max(self.intermediate_size, self.shared_intermediate_size) + super().neurons

    @property
    def split_sizes(self) -> dict[str, int]:
        """As in `Config`, and the key-value heads of full layers."""
        return {**super().split_sizes, "num_global_key_value_heads": self.full_key_value_heads}

    def of_kind(self, kind: str) -> "Gemma4Config":
        """The config of a model that has only layers of one kind."""
        heads = {"head_dim": self.full_head_dim, "num_key_value_heads": self.full_key_value_heads}
        width = {"intermediate_size": self.shared_intermediate_size}
        return replace(self, **(heads if kind.endswith(FULL) else {}), **(width if kind.startswith(SHARED) else {}))


class Gemma4Block(Sandwich):
    """Gemma 3's block, with per-layer embeddings and a factor of the stream at its end."""

    def __init__(self, config: Gemma4Config, kind: str, *, rngs: nnx.Rngs) -> None:
        norm, own = functools.partial(RMSNorm, eps=config.norm_eps), config.of_kind(kind)
        d, p, options = config.hidden_size, config.hidden_size_per_layer_input, {"bias": config.attention_bias}
        if kind == FULL and config.keys_are_values:
            options["keys_are_values"] = True
        if not config.value_layers:
            attention = ValueNormAttention(own, **options, rngs=rngs)
        elif kind.startswith(SHARED):
            attention = SharedAttention(own, kind.removeprefix(SHARED), **options, rngs=rngs)
        else:
            attention = SourceAttention(own, kind, **options, rngs=rngs)
        super().__init__(own, norm, attention, GatedMLP(own, rngs=rngs))
        self.layer_scalar = nnx.Param(jnp.ones(1))
        self.act = config.hidden_act
        self.per_layer_input_gate: Any = Linear(d, p, rngs=rngs) if p else None
        self.per_layer_projection: Any = Linear(p, d, rngs=rngs) if p else None
        self.post_per_layer_input_norm: Any = norm(d) if p else None

    def leave(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "t *b d"]:
        """The stream with the per-layer embeddings, times the factor."""
        if self.per_layer_input_gate is not None:
            x = layers.add_to_stream(x, ctx.hook("per_layer_out", self.per_layer(x, ctx)))
        return x * layers.broadcast_last(self.layer_scalar[...].astype(x.dtype), x)

    def per_layer(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        r"""The per-layer embeddings as added: $g$ times the frozen $u \odot \mathrm{act}(g) / g$, projected."""
        gate = self.per_layer_input_gate(x)
        factor = ctx.freeze("per_layer", lambda: layers.SLOPES[self.act](gate) * ctx.inputs.per_layer)
        h = self.per_layer_projection(gate * layers.rows_for(factor, gate))
        return self.post_per_layer_input_norm(h, ctx.within("post_per_layer_input_norm"))


class Gemma4(Gemma):
    """The Gemma 4 decoder."""

    Block = Gemma4Block

    def __init__(self, config: Gemma4Config, *, rngs: nnx.Rngs, **modes: Any) -> None:
        super().__init__(config, rngs=rngs, **modes)
        if self.reads_ids:
            p, d = config.hidden_size_per_layer_input, config.hidden_size
            features = config.num_hidden_layers * p
            self.embed_tokens_per_layer = Embedding(config.vocab_size_per_layer_input, features, rngs=rngs)
            self.per_layer_model_projection = Linear(d, features, rngs=rngs)
            self.per_layer_projection_norm = RMSNorm(p, config.norm_eps)

    def make_block(self, config: Gemma4Config, kind: str, rngs: nnx.Rngs) -> Gemma4Block:
        """A block of a kind: the type of its attention, after ``shared_`` if it has no values of its own."""
        return Gemma4Block(config, kind, rngs=rngs)

    def final_norm(self, config: Config) -> Any:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, config.norm_eps)

    @property
    def reads_ids(self) -> bool:
        """Whether there are per-layer embeddings."""
        return self.config.hidden_size_per_layer_input > 0

    @property
    def sites(self) -> tuple[str, ...]:
        """The kinds of sites that a block has."""
        return ORDER if self.reads_ids else KINDS

    def check_ids(self, ids: Any) -> np.ndarray:
        """As `Decoder.check_ids`; the table of per-layer embeddings must have the ids too."""
        checked, rows = super().check_ids(ids), self.config.vocab_size_per_layer_input
        if self.reads_ids and checked.max() >= rows:
            raise PromptError(
                f"Prompt: expected token ids in 0..{rows - 1}, those the model has per-layer embeddings for; found "
                f"{checked.max()}."
            )
        return checked

    def direct_factors(self) -> Float[Array, " l"]:
        """The product of ``layer_scalar`` from each layer on."""
        scalars = self.layout.map(lambda blocks: blocks.layer_scalar[...].astype(self.dtype), self.layers)
        return jnp.cumprod(scalars[::-1, 0])[::-1]

    def begin(self, x: Any) -> BlockInput:
        r"""The embeddings, and the per-layer inputs $(\mathrm{norm}(P x / \sqrt d) + \sqrt p\, e) / \sqrt 2$."""
        inputs = super().begin(x)
        if not isinstance(x, Prompt):
            return inputs
        p, d = self.config.hidden_size_per_layer_input, self.config.hidden_size
        with self.at_precision():
            projected = self.per_layer_model_projection(inputs.stream) * d**-0.5
        split = projected.reshape(projected.shape[0], -1, p)
        rows = self.embed_tokens_per_layer.weight[x.ids].astype(split.dtype).reshape(split.shape) * p**0.5
        # Frozen in each layer, as a part of what multiplies the gate.
        per_layer = (self.per_layer_projection_norm(split, Context()) + rows) * 2**-0.5
        return inputs._replace(per_layer=jnp.moveaxis(per_layer, 1, 0))
