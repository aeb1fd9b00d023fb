r"""A lens: what carries a layer's stream to the last, where the model's own final norm and unembedding read it.

$\operatorname{lens}_l(h) = \operatorname{unembed}(\operatorname{norm}(J_l\,h))$ for the stream $h$ after block $l$. The
logit lens has $J_l = 1$; the Jacobian lens the mean over a corpus of the derivative of the last stream by that one.

Sources: nostalgebraist, "interpreting GPT: the logit lens", 2020; Gurnee et al., "Verbalizable Representations Form a
Global Workspace in Language Models", arXiv 2607.15495, 2026.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.arrays import Leaf
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST
from jaxlin.steering.directions import token_direction

ORDINARY = "jacobian_lens"
"""The estimator of published lenses: the model's ordinary derivative, nothing held."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class JacobianLens:
    r"""A matrix for each of some layers, which takes the stream after that block to the stream after the last.

    A pytree: pass it through `jax.jit`.

    Attributes:
        maps: $J_l$, ``[n, d_out, d_in]``: applied as ``J @ h``.
        layers: the layers they belong to, counted from 0; the last needs none.
        prompts: how many prompts $J$ is the mean of.
        estimator: what is averaged: `ORDINARY`, or the local linear map and its rule, ``"local_linear_map, gate"``.
        skip_first: how many positions at the start of a prompt are left out; None where a file does not say.
        deviations: the sum over prompts of $\lVert J_p - J_l \rVert_F^2$ for the map $J_p$ of each, ``[n]``; None where
            a file does not say.
        target_layer: the layer whose stream it leads to, where a file says so; the last unless given.
    """

    maps: Leaf
    layers: tuple[int, ...] = field(metadata={"static": True})
    prompts: int = field(metadata={"static": True})
    estimator: str = field(default=ORDINARY, metadata={"static": True})
    skip_first: int | None = field(default=None, metadata={"static": True})
    deviations: tuple[float, ...] | None = field(default=None, metadata={"static": True})
    target_layer: int | None = field(default=None, metadata={"static": True})

    def __repr__(self) -> str:
        return (
            f"JacobianLens(maps of shape {jnp.shape(self.maps)}, layers={spans(self.layers)}, prompts={self.prompts}, "
            f"estimator={self.estimator!r})"
        )

    @property
    def error(self) -> Float[np.ndarray, " n"]:
        r"""The standard error of each $J_l$, relative to its Frobenius norm.

        $\sqrt{\sum_p \lVert J_p - J \rVert^2 / (n (n - 1))} \,/\, \lVert J \rVert$ for the maps $J_p$ of $n$ prompts
        and their mean $J$: how far off it is to be expected, as prompts of the corpus vary. Not a number for one
        prompt, or where a file does not say.
        """
        if self.deviations is None or self.prompts < 2:
            return np.full(len(self.layers), np.nan)
        variance = np.asarray(self.deviations) / (self.prompts * (self.prompts - 1))
        return np.sqrt(variance / squared_norms(self.maps))

    def at(self, layer: int) -> Float[Array | np.ndarray, "d e"]:
        """$J$ of one layer.

        Raises:
            JaxlinError: a layer that this lens has no matrix for.
        """
        if layer not in self.layers:
            raise JaxlinError(f"Lens: expected a layer of {spans(self.layers)}; found {quoted(layer)}.")
        return self.maps[self.layers.index(layer)]

    def transport(self, h: Float[Array | np.ndarray, "*b d"], layer: int) -> Float[Array, "*b d"]:
        """$J h$: the stream `h` after block `layer` as one before the final norm.

        Raises:
            JaxlinError: a layer that this lens has no matrix for, or vectors of another width.
        """
        matrix = self.at(layer)
        if jnp.shape(h)[-1:] != matrix.shape[1:]:
            raise JaxlinError(f"Lens: expected vectors of shape (..., {matrix.shape[1]}); found {jnp.shape(h)}.")
        return jnp.einsum("de,...e->...d", matrix, h, precision=HIGHEST)

    def direction(self, model: Decoder, token: int, layer: int) -> Float[Array, " d"]:
        r"""$J_l^\top w$ for the row $w$ of the unembedding that reads `token`: the token's direction at `layer`.

        It is one to `jaxlin.steering.add`, `ablate` or `swap` at ``("resid_post", layer)``. The final norm, and its
        weight, are left out, as they are of the vectors of published lenses.

        Raises:
            JaxlinError: a layer that this lens has no matrix for, a model of another width, or no token id.
        """
        check(model, self)
        return jnp.einsum("de,d->e", self.at(layer), token_direction(model, token), precision=HIGHEST)


def check(model: Decoder, lens: Any) -> None:
    """Refuse what is no lens of `model`.

    Raises:
        JaxlinError: no lens, or one of another width or depth.
    """
    if not isinstance(lens, JacobianLens):
        raise JaxlinError(
            f"Lens: expected one, as jaxlin.lens.fit or load gives; found a {type(lens).__name__}. "
            "Without any, the logit lens is read."
        )
    width, depth = model.config.hidden_size, model.config.num_hidden_layers
    expected = (len(lens.layers), width, width)
    if jnp.shape(lens.maps) != expected or not all(0 <= layer < depth for layer in lens.layers):
        raise JaxlinError(
            f"Lens: expected matrices of shape {expected} for layers in 0..{depth - 1}, as this model has; "
            f"found {jnp.shape(lens.maps)} for {spans(lens.layers)}. It belongs to another model."
        )
    if lens.target_layer not in (None, depth - 1, -1):
        raise JaxlinError(
            f"Lens: expected one that leads to the last layer, {depth - 1}, which the final norm reads; found one that "
            f"leads to layer {lens.target_layer}."
        )


def merge(lenses: Sequence[JacobianLens]) -> JacobianLens:
    """The lens of all prompts together, from lenses of parts of a corpus.

    Raises:
        JaxlinError: none, or lenses that are not of one estimator, the same layers and width, or with positions left
            out alike.
    """
    if not lenses:
        raise JaxlinError("Merge: expected one lens or more; found none.")
    first = lenses[0]
    for lens in lenses:
        for what in ("estimator", "layers", "skip_first", "target_layer"):
            if getattr(lens, what) != getattr(first, what):
                found = " and ".join(quoted(getattr(each, what)) for each in (first, lens))
                raise JaxlinError(f"Merge: expected lenses of one {what}; found {found}.")
        if jnp.shape(lens.maps) != jnp.shape(first.maps) or lens.prompts < 1:
            raise JaxlinError(
                f"Merge: expected matrices of shape {jnp.shape(first.maps)} and a number of prompts; "
                f"found {jnp.shape(lens.maps)}, of {lens.prompts}."
            )
    prompts = sum(lens.prompts for lens in lenses)
    maps = sum(np.asarray(lens.maps, np.float64) * (lens.prompts / prompts) for lens in lenses)
    within = [lens.deviations for lens in lenses if lens.deviations is not None]
    together = None
    if len(within) == len(lenses):
        # Of the prompts from the mean of their part, and of the parts' means from that of all.
        between = sum(lens.prompts * squared_norms(np.asarray(lens.maps, np.float64) - maps) for lens in lenses)
        together = tuple((np.sum(within, axis=0) + between).tolist())
    wide = np.result_type(np.float32, *(np.asarray(lens.maps).dtype for lens in lenses))
    return replace(first, maps=np.asarray(maps, wide), prompts=prompts, deviations=together)


def squared_norms(maps: Any) -> Float[np.ndarray, " n"]:
    r"""$\lVert J_l \rVert_F^2$ of each matrix, summed in float64."""
    return np.array([np.sum(np.square(each, dtype=np.float64)) for each in np.asarray(maps)])


def spans(layers: Sequence[int]) -> str:
    """Layers in words: ``0..4, 7``."""
    found: list[list[int]] = []
    for layer in sorted(layers):
        if found and layer == found[-1][1] + 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in found)
