r"""Ablation of attention heads: the effect of removing each head in the ordinary model, beside what the map predicts.

The local linear map has two predictions. The *direct* contribution of a head is what it writes at the position that is
read. Its contribution by all *paths* includes the effects of its output at every position on later blocks, with
nonlinear factors frozen. The frozen model is linear, so that contribution is exactly what it loses with the head.
"""

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin import plots
from jaxlin.attribution.logit import attribute
from jaxlin.causal.effects import prompt_up_to, read_edited, spearman
from jaxlin.common.annotations import is_integer
from jaxlin.common.arguments import checked
from jaxlin.common.printable import quoted
from jaxlin.common.progress import progress_bar
from jaxlin.linearize.backward import pull_back
from jaxlin.linearize.frozen import record
from jaxlin.linearize.targets import Target, Words, resolve_target, target_direction
from jaxlin.nn.attention import OutputProjection
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import InnerSite, SiteError
from jaxlin.nn.stack import layers_at, padded
from jaxlin.results import Result, traced_to
from jaxlin.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, repr=False)
class HeadAblation(Result):
    r"""What each query head contributes to a target, measured in three ways, ``[layers, h]`` each.

    An entry is NaN where a layer has fewer heads than another.

    Attributes:
        value: the value of the target in the unchanged model: a logit, a difference of two, or a projection.
        effects: how much `value` falls in the ordinary model when the output of the head is zero at every position.
        paths: how much it falls in the frozen model: the contribution of the head by all paths from all positions.
        direct: the contribution of what the head writes at the position that is read, as in `jaxlin.attribute`.
    """

    AXES: ClassVar = dict.fromkeys(("effects", "paths", "direct"), ("layer", "head"))
    PROPERTIES: ClassVar = ("rank_correlation", "direct_rank_correlation")

    value: float
    effects: Float[np.ndarray, "l h"]
    paths: Float[np.ndarray, "l h"]
    direct: Float[np.ndarray, "l h"]

    @property
    def rank_correlation(self) -> float:
        """Spearman's rank correlation of `effects` and `paths` over all heads; NaN if either is constant."""
        return spearman(self.effects, self.paths)

    @property
    def direct_rank_correlation(self) -> float:
        """Spearman's rank correlation of `effects` and `direct` over all heads; NaN if either is constant."""
        return spearman(self.effects, self.direct)

    def _draw(self, ax: Any) -> None:
        """A heat map of the effects, layer by head."""
        rows, columns = (list(map(str, range(count))) for count in self.effects.shape)
        plots.heat_map(ax, self.effects, rows, columns)
        plots.write(ax, title="Fall of the target without the head", xlabel="head", ylabel="layer")


@checked
def head_ablation(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    target: Target | Words,
    *,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
) -> HeadAblation:
    """Set the output of each query head to zero in turn, and read `target` again.

    The output of a head is the value that enters the output projection. There is one forward pass of the ordinary
    model for each head; the predictions of the map take two more, and two backward passes.

    Args:
        model: any decoder.
        x: the input embeddings.
        target: the target, as in `jaxlin.attribute`.
        position: where the target is read; negative counts from the last token. Later tokens are left out.
        tokenizer: the model's tokenizer, if the target is words.
        progress: show a progress bar if it takes more than a second.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: an invalid target.
        SiteError: no such position.
        TokenizerError: a word that is not one token.
    """
    prompt, x = x, prompt_up_to(model, x, position)
    resolved = resolve_target(model, target, x, -1, tokenizer)
    attribution = attribute(model, x, resolved, neurons=0)
    paths = np.asarray(_by_all_paths(model, x, resolved))
    layers = progress_bar(range(len(paths)), show=progress, unit="layer", desc="heads")
    indices = jnp.arange(paths.shape[1])
    values = np.stack([np.asarray(_without_each_head(model, x, layer, resolved, indices)) for layer in layers])
    effects = np.where(np.isnan(paths), np.nan, attribution.value - values)
    result = HeadAblation(attribution.value, effects, paths, attribution.heads)
    return traced_to(result, model, prompt, tokenizer=tokenizer, target=resolved, position=position)


@checked
def without_heads(model: Decoder, heads: Iterable[tuple[SupportsIndex, SupportsIndex]]) -> Decoder:
    """A copy of `model` in which the output of some query heads is zero at every position.

    It is a model like any other, to generate with or to take the map of: the columns of the output projections that
    belong to the heads are zero. Quantised output projections are unpacked.

    Args:
        model: any decoder.
        heads: pairs of a layer and the index of a head in it; negative ones count from the last.

    Raises:
        SiteError: no such layer or head.
    """
    remains = [np.ones(count, bool) for count in head_counts(model)]
    depth = len(remains)
    for pair in heads:
        is_pair = isinstance(pair, tuple) and len(pair) == 2 and all(map(is_integer, pair))
        layer, head = map(operator.index, pair) if is_pair else (depth, 0)
        count = len(remains[layer]) if -depth <= layer < depth else max(map(len, remains))
        if not -depth <= layer < depth or not -count <= head < count:
            raise SiteError(
                f"Heads: expected pairs of a layer below {depth} and a head below {count}; found {quoted(pair)}."
            )
        remains[layer][head] = False

    def is_projection(node: Any) -> bool:
        return isinstance(node, OutputProjection)

    def remaining(path: Any, node: Any) -> Any:
        if not is_projection(node):
            return node
        return node.with_heads(np.stack([remains[layer] for layer in layers_at(path, depth)]))

    return jax.tree_util.tree_map_with_path(remaining, model, is_leaf=is_projection)


def head_counts(model: Decoder) -> list[int]:
    """The number of query heads of each layer."""
    counts = {}
    for index, segment in enumerate(model.layout.segments):
        for place in range(segment.period):
            blocks = model.layout.stacks(model.layers, index, place)
            counts |= dict.fromkeys(segment.layers(place), getattr(blocks, blocks.mixer).heads)
    return [counts[layer] for layer in sorted(counts)]


@jax.jit
def _by_all_paths(model: Decoder, x: Float[Embeddings, "t d"], target: Array) -> Float[Array, "l h"]:
    """The gradient of the target in the heads of the frozen model at all positions, times their output."""
    recording = record(model, x, (InnerSite.HEADS,))
    heads = recording.sites[InnerSite.HEADS]
    _, _, direction = target_direction(model, recording, target, -1)
    gradients = pull_back(model, recording.frozen, direction, {InnerSite.HEADS: heads}).added[InnerSite.HEADS]
    return padded(model.layout.map(functools.partial(jnp.einsum, "lthk,lthk->lh", precision=HIGHEST), gradients, heads))


@jax.jit
def _without_each_head(
    model: Decoder, x: Float[Embeddings, "t d"], layer: Any, target: Array, indices: Int[Array, " h"]
) -> Float[Array, " h"]:
    """The value of `target` at the last position, without each head of a layer in turn."""

    def without(head: Array, z: Array) -> Array:
        return jnp.where((jnp.arange(z.shape[1]) == head)[None, :, None], 0, z)

    return read_edited(model, x, target, InnerSite.HEADS, layer, without, indices)
