r"""Edits by the local linear map of a steering phrase: the operator in the paper, and the one in its code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.annotations import Number
from jaxlin.common.arguments import checked
from jaxlin.common.arrays import Leaf
from jaxlin.linearize.local_maps import local_map
from jaxlin.nn.biases import without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.edits import Edit, check_where
from jaxlin.nn.freeze_modes import Record, Replay
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import SiteError, place


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MapEdit(Edit):
    r"""An edit by $c_k = \sum_{j \le k} J_{j \bmod T}\,e_j$, the map of a steering phrase applied to another text.

    The paper does not say which column of $J$ multiplies which token if the text is not as long as the phrase. Here the
    $T$ columns take turns, as in its code. At the last position of the phrase itself $c = Jx$.

    Attributes:
        columns: the columns $J_t$ of the map, ``[T, d, d]``.
    """

    columns: Leaf

    @property
    def drive_features(self) -> int:
        """The number of features of $c_k$, which is that of the stream."""
        return self.columns.shape[1]

    def drive(
        self, x: Float[Embeddings, "t d"], positions: Int[Array, " t"], before: Float[Array, " e"]
    ) -> Float[Array, "t e"]:
        """$c_k$ at each position."""

        def term(token: tuple[Array, Array]) -> Array:
            e, k = token
            column = jax.lax.dynamic_index_in_dim(self.columns, k % self.columns.shape[0], keepdims=False)
            return jnp.einsum("oi,i->o", column, e, precision=HIGHEST).astype(e.dtype)

        # One position at a time, because a column is as large as a weight matrix.
        return before[None, :] + jnp.cumsum(jax.lax.map(term, (x, positions)), axis=0)

    def vectors(self) -> Mapping[str, Array]:
        """The columns of the map."""
        return {"columns": self.columns}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PaperEquation(MapEdit):
    r"""$h_k \mapsto \lambda h_k + (1 - \lambda)\,c_k$ with strength $s = 1 - \lambda$: see `paper_equation`."""

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """$h_k$ moved towards $c_k$ by the share $s$."""
        return (h + self.strength * (drive - h)).astype(h.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PaperCode(MapEdit):
    r"""$h_k \mapsto h_k + \lambda \lVert h_k \rVert\, c_k / (2 \lVert c_k \rVert)$: see `paper_code`."""

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """$h_k$ plus a vector along $c_k$."""
        length = jnp.linalg.norm(drive, axis=-1, keepdims=True)
        size = self.strength * jnp.linalg.norm(h, axis=-1, keepdims=True) / 2
        return (h + size * drive / jnp.where(length > 0, length, 1)).astype(h.dtype)


@checked
def paper_equation(
    model: Decoder, x: Float[Embeddings, "t d"], layer: int, strength: Number = 0.5, *, where: Any = "new"
) -> PaperEquation:
    r"""The operator of the paper: $f_\text{steered}(x') = \lambda f(x') + (1 - \lambda) J(x_\text{steer})\, x'$.

    $f$ and $J$ lead from the embeddings to the output of block `layer` at the last position; hence ``where="new"``.
    The strength is $s = 1 - \lambda$. On the phrase itself, in a model without biases, the edit changes nothing at any
    strength.

    Source: Golden, arXiv 2505.24293 v3, eq. 16. The experiments there use `paper_code` instead.

    Args:
        model: any decoder.
        x: the input embeddings of the steering phrase.
        layer: the block after which the stream is steered.
        strength: $1 - \lambda$.
        where: the positions that are edited, see `jaxlin.steering.Where`.

    Raises:
        SiteError: no such layer.
    """
    site = ("resid_post", layer)
    columns = jnp.asarray(local_map(model, x, target=site).jacobian()).swapaxes(0, 1)
    return PaperEquation(site=site, strength=strength, where=check_where(where), columns=columns)


@checked
def paper_code(
    model: Decoder, x: Float[Embeddings, "t d"], layer: int, strength: Number = 1.0, *, where: Any = "all"
) -> PaperCode:
    r"""The operator in the paper's code, which differs from eq. 16: it adds a vector along $c_k$ to the stream.

    The length of that vector is $\lambda / 2$ of the norm of the stream. In the code, $J$ leads to the output of block
    `layer` *through the final norm*, frozen at that output, and the result is added to the *un-normed* input of block
    ``layer - 1``, at all positions. So the vector has been scaled by the weight of the final norm, and it is added two
    blocks before the stream that it was computed for; both are reproduced here.

    Source: the repository of arXiv 2505.24293, ``src/JacobianAnalyzer.py``, lines 1617-1719.

    Args:
        model: any decoder.
        x: the input embeddings of the steering phrase.
        layer: `lsplit` in the code, where the default is two thirds of the depth; here it has no default.
        strength: $\lambda$ in the code, whose examples have values between 0.17 and 1.03.
        where: the positions that are edited, see `jaxlin.steering.Where`.

    Raises:
        SiteError: no such layer, or no block before it.
    """
    depth = model.config.num_hidden_layers
    place(("resid_post", layer), depth)
    site = ("resid_pre", layer % depth - 1)
    if layer % depth == 0:
        raise SiteError("The paper's code adds to the input of the block before `layer`; found layer 0.")
    lmap = local_map(model, x, target=("resid_post", layer))
    recording = Record(model.rule)
    model.norm(lmap.output[None, :], Context(recording))
    norm = without_biases(model).norm
    rows = jnp.asarray(lmap.jacobian())
    normed = jax.vmap(lambda column: norm(column[None, :], Context(Replay(recording.factors)))[0], 1, 0)
    columns = normed(rows.reshape(rows.shape[0], -1)).reshape(*rows.shape[1:], -1).swapaxes(1, 2)
    return PaperCode(site=site, strength=strength, where=check_where(where), columns=columns)
