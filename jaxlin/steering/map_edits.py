r"""Edits by the local linear map of a steering phrase: the paper's operator, and that of its code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.linearize.local_maps import local_map
from jaxlin.nn.biases import without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Record, Replay
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import SiteError, place
from jaxlin.steering.edits import Edit, checked_where


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MapEdit(Edit):
    r"""An edit by $c_k = \sum_{j \le k} J_{j \bmod T}\,e_j$, the map of a steering phrase applied to the text at hand.

    The paper does not say which column of $J$ meets which token when the text is not as long as the phrase; the
    $T$ columns are taken in turn, as in its code. At the last position of the phrase itself $c = Jx$.

    Attributes:
        columns: $J_t$, ``[T, d, d]``.
    """

    columns: Leaf

    @property
    def drive_features(self) -> int:
        """$c_k$ has the features of the stream."""
        return self.columns.shape[1]

    def drive(
        self, x: Float[Array, "t d"], positions: Int[Array, " t"], before: Float[Array, " e"]
    ) -> Float[Array, "t e"]:
        """$c_k$."""

        def through(token: tuple[Array, Array]) -> Array:
            e, k = token
            column = jax.lax.dynamic_index_in_dim(self.columns, k % self.columns.shape[0], keepdims=False)
            return jnp.einsum("oi,i->o", column, e, precision=HIGHEST).astype(e.dtype)

        # One position at a time: a column is as large as a weight matrix.
        return before[None, :] + jnp.cumsum(jax.lax.map(through, (x, positions)), axis=0)

    def vectors(self) -> Mapping[str, Array]:
        """The columns."""
        return {"columns": self.columns}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PaperEquation(MapEdit):
    r"""$h_k \mapsto \lambda h_k + (1 - \lambda)\,c_k$ with strength $s = 1 - \lambda$: see `paper_equation`."""

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """The blend."""
        return (h + self.strength * (drive - h)).astype(h.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PaperCode(MapEdit):
    r"""$h_k \mapsto h_k + \lambda \lVert h_k \rVert\, c_k / (2 \lVert c_k \rVert)$: see `paper_code`."""

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """The push."""
        length = jnp.linalg.norm(drive, axis=-1, keepdims=True)
        size = self.strength * jnp.linalg.norm(h, axis=-1, keepdims=True) / 2
        return (h + size * drive / jnp.where(length > 0, length, 1)).astype(h.dtype)


def paper_equation(
    model: Decoder, x: Float[Array, "t d"], layer: int, strength: float = 0.5, *, where: Any = "new"
) -> PaperEquation:
    r"""The operator of the paper: $f_\text{steered}(x') = \lambda f(x') + (1 - \lambda) J(x_\text{steer})\, x'$.

    $f$ and $J$ lead from the embeddings to the output of block `layer`, at the last position; hence ``where="new"``.
    The strength is $s = 1 - \lambda$. For the phrase itself, in a model without biases, it changes nothing at any
    strength.

    Source: Golden, arXiv 2505.24293 v3, eq. 16. Its experiments did not use it but `paper_code`.

    Args:
        model: any decoder.
        x: the input embeddings of the steering phrase.
        layer: the block after which the stream is steered.
        strength: $1 - \lambda$.
        where: at which positions, see `jaxlin.steering.Where`.

    Raises:
        SiteError: no such layer.
    """
    site = ("resid_post", layer)
    columns = jnp.asarray(local_map(model, x, target=site).jacobian()).swapaxes(0, 1)
    return PaperEquation(site=site, strength=strength, where=checked_where(where), columns=columns)


def paper_code(
    model: Decoder, x: Float[Array, "t d"], layer: int, strength: float = 1.0, *, where: Any = "all"
) -> PaperCode:
    r"""What the paper's code does in place of eq. 16: a push of $\lambda / 2$ of the norm of the stream along $c_k$.

    There, $J$ leads to the output of block `layer` *through the final norm*, held at that state, and what it gives is
    added to the *un-normed* input of block ``layer - 1``, at all positions. What is added has thus been scaled by the
    weight of the final norm and belongs further on in the model; both are kept as they are there.

    Source: the repository of arXiv 2505.24293, ``src/JacobianAnalyzer.py``, lines 1617-1719.

    Args:
        model: any decoder.
        x: the input embeddings of the steering phrase.
        layer: its `lsplit`, two thirds of the depth where its user says nothing; here it must be given.
        strength: its $\lambda$, between 0.17 and 1.03 in its examples.
        where: at which positions, see `jaxlin.steering.Where`.

    Raises:
        SiteError: no such layer, or no block before it.
    """
    depth = model.config.num_hidden_layers
    place(("resid_post", layer), depth)
    site = ("resid_pre", layer % depth - 1)
    if layer % depth == 0:
        raise SiteError("The paper's code adds to the input of the block before `layer`; found layer 0.")
    lmap = local_map(model, x, target=("resid_post", layer))
    recorded = Record(model.rule)
    model.norm(lmap.output[None, :], Context(recorded))
    norm = without_biases(model).norm
    rows = jnp.asarray(lmap.jacobian())
    normed = jax.vmap(lambda column: norm(column[None, :], Context(Replay(recorded.factors)))[0], 1, 0)
    columns = normed(rows.reshape(rows.shape[0], -1)).reshape(*rows.shape[1:], -1).swapaxes(1, 2)
    return PaperCode(site=site, strength=strength, where=checked_where(where), columns=columns)
