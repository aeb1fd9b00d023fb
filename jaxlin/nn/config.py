"""`Config`: the sizes and numbers that define a decoder."""

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxlin.nn.ropes import Rope

UNLIMITED = np.iinfo(np.int32).max
"""The window, or the chunk, of a layer that has none."""


@dataclass(frozen=True, kw_only=True)
class Config:
    r"""The numbers that every decoder has, under Hugging Face's names.

    Attributes:
        vocab_size: rows of the embedding matrix.
        hidden_size: features of the residual stream.
        intermediate_size: hidden features of an MLP.
        num_hidden_layers: blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key-value heads.
        head_dim: features of a head.
        norm_eps: the number added under the root of a norm.
        hidden_act: a key of `jaxlin.nn.layers.SLOPES`.
        max_position_embeddings: the longest prompt; None where the model sets no limit.
        tie_word_embeddings: whether the unembedding is the embedding matrix. In a loaded model the checkpoint
            decides, whatever config.json says: see `jaxlin.loading.unembedding`.
        ropes: the rotary frequencies of each layer.
        windows: how many tokens a query of each layer sees, itself included; None for all.
        chunks: the tokens of a chunk, of which a query of each layer sees its own alone; None for a layer without
            chunks, and no numbers where no layer has them.
        value_layers: for each layer the one whose keys and values it reads, its own or an earlier one's; empty where
            all read their own.
        layer_kinds: the kind of each layer, for `Decoder.make_block`; empty where all are alike.
        logit_scale: the factor of the logits, before their bound.
        final_logit_softcapping: the bound $c$ of logits $c \tanh(z / c)$; None for no bound.
        has_unembedding: whether there are logits; files of embedding models and classifiers may have no unembedding.
        ignored_config_keys: keys of the file that the caller of `jaxlin.load` had it ignore.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    norm_eps: float
    hidden_act: str
    max_position_embeddings: int | None
    tie_word_embeddings: bool
    ropes: tuple[Rope, ...] = field(repr=False)
    windows: tuple[int | None, ...] = field(repr=False)
    chunks: tuple[int | None, ...] = field(default=(), repr=False)
    value_layers: tuple[int, ...] = field(default=(), repr=False)
    layer_kinds: tuple[str, ...] = field(default=(), repr=False)
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None
    has_unembedding: bool = True
    ignored_config_keys: tuple[str, ...] = ()

    @property
    def neurons(self) -> int:
        """The hidden neurons of the widest MLP, those that it computes for one token."""
        return self.intermediate_size

    @property
    def split_sizes(self) -> dict[str, int]:
        """The sizes that the mesh axis ``"model"`` must divide, by name: see `jaxlin.nn.sharding`."""
        names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names}

    def first_visible(self, positions: Int[Array, " t"]) -> Int[Array, "l t"]:
        r"""The first key that the query at each position $p$ sees, in each layer.

        It is $\max(0, p - w + 1)$ in a window of $w$ tokens, and $\lfloor p / c \rfloor c$ in chunks of $c$.
        """

        def tokens(limits: tuple[int | None, ...]) -> Int[Array, "l 1"]:
            return jnp.asarray([UNLIMITED if limit is None else limit for limit in limits])[:, None]

        windows, chunks = tokens(self.windows), tokens(self.chunks or (None,) * len(self.windows))
        return jnp.maximum(positions[None] - windows + 1, positions[None] // chunks * chunks)
