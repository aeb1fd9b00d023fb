r"""Each attention head taken away: what the model then does, beside what the map says of the head.

The map's own account has two parts. What a head brings by the direct path is what it writes at the position read. What
it brings by all paths is the same with what later blocks make of it, nonlinear factors held: in the held model, which
is linear, just that goes when the head does.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxlin.attribution.components import read, read_back
from jaxlin.attribution.logit import attribute
from jaxlin.causal.effects import BATCH, slopes, spearman
from jaxlin.common.arrays import ShapesRepr
from jaxlin.common.printable import quoted
from jaxlin.linearize.frozen import record
from jaxlin.linearize.targets import Target, Words, checked_target, without_words
from jaxlin.nn.arguments import check_model
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Plain
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import InnerSite, SiteError, is_whole, position_in
from jaxlin.quantized import PackedMatrix
from jaxlin.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, repr=False)
class HeadAblation(ShapesRepr):
    r"""What each query head does for a target, in three ways, ``[layers, h]`` each.

    Attributes:
        value: the logit, difference of logits or projection that the target reads of the whole model.
        effects: how much `value` falls when what the head gives is 0 at every position, in the ordinary model.
        paths: how much it falls in the held model: what the head brings by all paths, from all positions.
        direct: what the head writes at the position read: `heads` of `jaxlin.attribute`, without later tokens.
    """

    value: float
    effects: Float[np.ndarray, "l h"]
    paths: Float[np.ndarray, "l h"]
    direct: Float[np.ndarray, "l h"]

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between `effects` and `paths`, over all heads; not a number where either is constant."""
        return spearman(self.effects.ravel(), self.paths.ravel())

    @property
    def direct_rank_correlation(self) -> float:
        """The same between `effects` and `direct`."""
        return spearman(self.effects.ravel(), self.direct.ravel())


def head_ablation(
    model: Decoder,
    x: Float[Array, "t d"],
    target: Target | Words,
    *,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
) -> HeadAblation:
    """Zero each query head in turn, before the output projection mixes them, and read `target` anew.

    A forward pass of the ordinary model for each head; what the map says takes two more, and two backward.

    Args:
        model: any decoder.
        x: the input embeddings.
        target: what is read, as in `jaxlin.attribute`.
        position: where it is read; negative counts from the last token. Later tokens are left out.
        tokenizer: the model's, to read words with.
        progress: show a bar where it takes long.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: a target that is none.
        SiteError: no such position.
        TokenizerError: a word that is not one token.
    """
    check_model(model)
    model.check_embeddings(x)
    x = x[: position_in(x.shape[0], position) + 1]
    ids = without_words(model, tokenizer, target, x, -1)
    what, found = checked_target(model, ids, x.dtype), attribute(model, x, ids, neurons=0)
    paths = np.asarray(_by_all_paths(model, x, what))
    layers = tqdm(range(len(paths)), unit="layer", desc="heads", delay=1, disable=None if progress else True)
    left = np.stack([np.asarray(_without_each(model, x, layer, what)) for layer in layers])
    return HeadAblation(found.value, found.value - left, paths, found.heads)


def without_heads(model: Decoder, heads: Iterable[tuple[SupportsIndex, SupportsIndex]]) -> Decoder:
    """`model` in which some query heads give 0 at every position: their columns of the output projection are zero.

    A model like any other: generate with it, take its map. Output projections that are packed are unpacked.

    Args:
        model: any decoder.
        heads: pairs of a layer and a head in it; negative ones count from the last.

    Raises:
        SiteError: no such layer or head.
    """
    config = model.config
    size = (config.num_hidden_layers, config.num_attention_heads)
    kept = np.ones(size, bool)
    for pair in heads:
        whole = isinstance(pair, tuple) and len(pair) == 2 and all(map(is_whole, pair))
        if not whole or any(not -n <= i < n for i, n in zip(pair, size, strict=True)):
            raise SiteError(
                f"Heads: expected pairs of a layer below {size[0]} and a head below {size[1]}; found {quoted(pair)}."
            )
        kept[pair] = False

    def cut(path: tuple[Any, ...], leaf: Any) -> Any:
        if [key.name for key in path if key.name != "value"][-2:] != ["o_proj", "weight"]:
            return leaf
        weight = leaf[...]
        columns = kept.repeat(weight.shape[-1] // size[1], axis=1)
        return jnp.where(columns[:, None, :], weight, 0)

    return jax.tree_util.tree_map_with_path(cut, model, is_leaf=lambda node: isinstance(node, PackedMatrix))


@jax.jit
def _by_all_paths(model: Decoder, x: Float[Array, "t d"], target: Array) -> Float[Array, "l h"]:
    """The slopes of the target in the heads of all positions, in the held model, times what they give."""
    recording = record(model, x, (InnerSite.HEADS,))
    held, heads = recording.frozen, recording.sites[InnerSite.HEADS]
    _, _, direction = read_back(model, recording, -1, target)
    rows = slopes(model, held, InnerSite.HEADS, heads, direction)
    return jnp.einsum("lthk,lthk->lh", rows, heads, precision=HIGHEST)


@jax.jit
def _without_each(model: Decoder, x: Float[Array, "t d"], layer: Any, target: Array) -> Float[Array, " h"]:
    """What `target` reads at the last position, without each head of a layer."""
    config = model.config

    def without(head: Array) -> Array:
        def make_context(index: Array) -> Context:
            gone = (index == layer) & (jnp.arange(config.num_attention_heads) == head)
            edits: dict[str, Any] = {InnerSite.HEADS: lambda z: jnp.where(gone[None, :, None], 0, z)}
            return Context(Plain(model.rule), Hooks(edits=edits))

        stream, _ = model.scan(x, make_context, jnp.arange(config.num_hidden_layers))
        return read(model, model.norm(stream, Context())[-1], target, Context())

    return jax.lax.map(without, jnp.arange(config.num_attention_heads), batch_size=BATCH)
