r"""Per-layer embeddings: a row of a second embedding for each token and layer, which gates what a layer adds.

From the ids and the input embeddings $x$, after their scale, each layer has an input
$u = (\mathrm{norm}(P x / \sqrt d) + \sqrt p\, e) / \sqrt 2$ with the row $e$ of $p$ features, and it adds
$\mathrm{norm}(W_o(\mathrm{act}(g) \odot u))$ for the gate $g = W_g h$ of its stream. With $u \odot \mathrm{act}(g) / g$
frozen this is linear in the stream: no part of it is a constant, and none comes from the input embeddings directly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.nn import layers
from jaxlin.nn.block_input import BlockInput
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.modules import Embedding, Linear, RMSNorm
from jaxlin.nn.prompt import Prompt, PromptError
from jaxlin.nn.sites import KINDS, ORDER, InnerSite


@dataclass(frozen=True, kw_only=True)
class PerLayerConfig(Config):
    """`Config`, and the sizes of the second embedding.

    Attributes:
        hidden_size_per_layer_input: features of a layer's part of a row; 0 where there are no per-layer embeddings.
        vocab_size_per_layer_input: rows of the table.
    """

    hidden_size_per_layer_input: int
    vocab_size_per_layer_input: int


class PerLayerBlock(nnx.Module):
    """A block that adds per-layer embeddings, to which its family adds attention and an MLP."""

    act: str
    per_layer_input_gate: Any
    per_layer_projection: Any
    post_per_layer_input_norm: Any

    def make_per_layer(self, config: PerLayerConfig, norm: Callable[[int], Any], rngs: nnx.Rngs) -> None:
        """The gate, the projection and the norm after it; None each where the model has no per-layer embeddings."""
        d, p = config.hidden_size, config.hidden_size_per_layer_input
        self.act = config.hidden_act
        self.per_layer_input_gate = Linear(d, p, rngs=rngs) if p else None
        self.per_layer_projection = Linear(p, d, rngs=rngs) if p else None
        self.post_per_layer_input_norm = norm(d) if p else None

    def per_layer(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        r"""The per-layer embeddings as added: $g$ times the frozen $u \odot \mathrm{act}(g) / g$, projected."""
        gate = self.per_layer_input_gate(ctx.hook(InnerSite.PER_LAYER_IN, x))
        factor = ctx.freeze("per_layer", lambda: layers.SLOPES[self.act](gate) * ctx.inputs.per_layer)
        h = self.per_layer_projection(gate * layers.rows_for(factor, gate))
        return self.post_per_layer_input_norm(h, ctx.within("post_per_layer_input_norm"))


class PerLayerDecoder(Decoder):
    """A decoder whose layers read rows of a second embedding, if its config has any features of them."""

    def __init__(self, config: PerLayerConfig, *, rngs: nnx.Rngs, **modes: Any) -> None:
        super().__init__(config, rngs=rngs, **modes)
        if self.reads_ids:
            p, d = config.hidden_size_per_layer_input, config.hidden_size
            features = config.num_hidden_layers * p
            self.embed_tokens_per_layer = Embedding(config.vocab_size_per_layer_input, features, rngs=rngs)
            self.per_layer_model_projection = Linear(d, features, rngs=rngs)
            self.per_layer_projection_norm = RMSNorm(p, config.norm_eps)

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
                f"{checked.max()}. Ids past these stand for images and sound: leave them out."
            )
        return checked

    def begin(self, x: Any) -> BlockInput:
        """The embeddings, and the input of each layer."""
        inputs = super().begin(x)
        if not isinstance(x, Prompt):
            return inputs
        p, d = self.config.hidden_size_per_layer_input, self.config.hidden_size
        with self.at_precision():
            projected = self.per_layer_model_projection(inputs.stream) * d**-0.5
        split = projected.reshape(projected.shape[0], -1, p)
        rows = self.embed_tokens_per_layer.weight[self.table_rows(x.ids)].astype(split.dtype).reshape(split.shape)
        # Frozen in each layer, as a part of what multiplies the gate.
        per_layer = (self.per_layer_projection_norm(split, Context()) + rows * p**0.5) * 2**-0.5
        return inputs._replace(per_layer=jnp.moveaxis(per_layer, 1, 0))

    def table_rows(self, ids: Int[Array, " t"]) -> Int[Array, " t"]:
        """The rows of the table that belong to token ids."""
        return ids
