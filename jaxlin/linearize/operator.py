r"""`LocalMap`: the exact local linear map $f(x) = \sum_t J_t x_t + b$ of a decoder, as an operator.

Rows of $J$ are the transpose of the replayed, truly linear model: no forward pass, no query, key or gate product.
Source: arXiv 2505.24293; the operator form is ours.
"""

import functools
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxlin.common.arrays import Leaf, relative_error
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.linearize.backward import transpose
from jaxlin.linearize.frozen import FrozenFactors, replay_between
from jaxlin.linearize.linalg.lanczos import cheaper, check_options, krylov_svd
from jaxlin.linearize.linalg.triplets import SVD, bounded_svd, check_count, check_dtype
from jaxlin.linearize.rows import block_sizes, default_block, dense_from_rows, path_of
from jaxlin.nn.biases import without_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.fingerprints import fingerprint
from jaxlin.nn.folding import folding_pays
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.sharding import mesh_of, row_parts, spread_rows
from jaxlin.nn.sites import Place

RESIDUAL_DIRECTIONS = 32
"""Random directions in which `LocalMap.residual` is measured."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class LocalMap:
    r"""The map $v \mapsto J v$ from the `source` site to the output $f$ at one position of the `target` site.

    With every nonlinear factor frozen at its value, the model is affine: $f(x) = \sum_t J_t x_t + b$ holds exactly. $J$
    has shape ``[d, t, d]`` and is not stored: ``lmap @ v`` multiplies ``[t, d]`` to ``[d]``, ``lmap.T @ u`` the other
    way, both with leading batch axes, and `jacobian` gives the dense array. The map is a pytree: pass it to `jax.jit`.

    It is not the derivative of the model, which differentiates the factors too, and it says nothing about inputs other
    than `x`. Nor is it unique: another freeze `rule` gives another $J$ with the same $J x + b$.

    Attributes:
        model: the decoder.
        x: the value at the source, ``[t, d]``: the input embeddings, or the stream at an inner site.
        output: $f(x)$, ``[d]``, from the forward pass.
        bias: $b$, ``[d]``: what does not pass through the source. From the embeddings, and from any site that cuts the
            residual stream, it is what the model's additive biases bring,
            $\sum_\beta (\partial f/\partial\beta)\,\beta$, exactly zero in a model without; never $f - Jx$.
        frozen: what is held, at the first positions: no later one than `position` reaches the output, and few
            later ones are kept (see `jaxlin.linearize.local_maps.MAX_PROMPT_CUTS`).
        position: the position of the output, counted from the first token.
        source: the source in canonical form.
        target: the target in canonical form.
        at_last: whether the position is the last of those that are held: the last block then needs no other.
    """

    model: Decoder
    x: Leaf
    output: Leaf
    bias: Leaf
    frozen: FrozenFactors
    position: Leaf
    source: Place = field(metadata={"static": True})
    target: Place = field(metadata={"static": True})
    at_last: bool = field(metadata={"static": True})

    def __repr__(self) -> str:
        # np.shape, because JAX puts anything in the place of a leaf. Of a batch, both have its axes.
        output, x = np.shape(self.output), np.shape(self.x)
        shape = (*output, *x[max(0, len(output) - 1) :])
        return f"LocalMap(shape={shape}, source={self.source}, target={self.target}, rule={self.rule!r})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(d, t, d)``: output features, input tokens, input features.

        Raises:
            JaxlinError: a batch of maps, as `jax.vmap` of `local_map` gives.
        """
        if len(self.output.shape) != 1:
            raise JaxlinError(
                f"Local map: expected one; found a batch of {self.output.shape[:-1]}, as jax.vmap gives. Use it within "
                "jax.vmap too: jax.vmap(lambda lmap, v: lmap @ v)(maps, vs)."
            )
        return self.output.shape[0], *self.x.shape

    @property
    def rule(self) -> Rule:
        """The freeze rule of gated MLPs."""
        return self.frozen.rule

    @property
    def T(self) -> "Transposed":  # noqa: N802  NumPy's name
        r"""The transpose: ``lmap.T @ u`` is $J^\top u$, ``[t, d]``."""
        return Transposed(self)

    def __matmul__(self, v: Shaped[Array | np.ndarray, "*b t d"]) -> Float[Array, "*b d"]:
        return self.matvec(v)

    def matvec(self, v: Shaped[Array | np.ndarray, "*b t d"]) -> Float[Array, "*b d"]:
        """$J v$ for each `v` on the leading axes."""
        v, batch = self._shaped(v, self.shape[1:])
        return _push(self, spread_rows(v, mesh_of(self.model))).reshape(*batch, *self.output.shape)

    def rmatvec(self, u: Shaped[Array | np.ndarray, "*b d"]) -> Float[Array, "*b t d"]:
        r"""$J^\top u$ for each `u` on the leading axes: the gradient of $u \cdot f$ with every factor frozen."""
        u, batch = self._shaped(u, self.shape[:1])
        out = _pull(self, spread_rows(u, mesh_of(self.model)), fold=self._folds(u.shape[0]))
        return out.reshape(*batch, *self.x.shape)

    def _folds(self, rows: int) -> bool:
        """Whether it saves operations to fold MLPs for as many rows, of which every device has a part."""
        d, f = self.model.config.hidden_size, self.model.config.intermediate_size
        return folding_pays(rows // row_parts(mesh_of(self.model)), d, f)

    def _shaped(self, a: Any, tail: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        """`a` with one leading axis, and the axes that it had in its place."""
        try:
            if jnp.iscomplexobj(a):
                raise JaxlinError(
                    "Local map: expected real vectors; found complex ones. Take both parts by themselves."
                )
            a = jnp.asarray(a, self.output.dtype)
        except JaxlinError:
            raise
        except (TypeError, ValueError) as error:
            raise JaxlinError(f"Local map: expected an array of numbers; found {quoted(a)}.") from error
        batch = a.shape[: -len(tail)]
        if a.shape[-len(tail) :] != tail:
            raise JaxlinError(
                f"Local map: expected a vector of shape (..., {', '.join(map(str, tail))}); found {a.shape}."
            )
        return a.reshape(math.prod(batch), *tail), batch

    @functools.cached_property
    def residual(self) -> Leaf:
        r"""$\lVert J x + b - f(x) \rVert / \lVert f(x) \rVert$, the proof that this map is the model.

        Measured through the transpose in `RESIDUAL_DIRECTIONS` random directions $u$ with a fixed seed, for which
        $\mathbb{E}\,(u \cdot r)^2 = \lVert r \rVert^2$: the forward product `lmap @ x` repeats the model's own
        arithmetic and would prove nothing. `jacobian` gives every row; `residual_of` is then exact. Where the model
        gives zero, as one without biases does of embeddings of zero, it is zero if the map does too.

        The first access takes as long as `RESIDUAL_DIRECTIONS` rows of the map: next to nothing for a short prompt,
        minutes for a model of 135 M parameters at 2,000 tokens on two cores of a CPU.
        """
        u = jax.random.normal(jax.random.key(0), (RESIDUAL_DIRECTIONS, self.output.shape[0]), self.output.dtype)
        through = jnp.einsum("rtd,td->r", self.rmatvec(u), self.x, precision=jax.lax.Precision.HIGHEST)
        defect = through + jnp.matmul(u, self.bias - self.output, precision=jax.lax.Precision.HIGHEST)
        found = relative_error(jnp.sqrt(jnp.mean(defect**2)), jnp.linalg.norm(self.output))
        return found if isinstance(found, jax.core.Tracer) else float(found)

    def residual_of(self, jacobian: Any) -> float:
        r"""$\lVert J x + b - f(x) \rVert / \lVert f(x) \rVert$ of a dense $J$, ``[d, t, d]``, summed in float64.

        Raises:
            JaxlinError: an array of another shape.
        """
        if np.shape(jacobian) != self.shape:
            raise JaxlinError(f"Residual: expected a dense map of shape {self.shape}; found {np.shape(jacobian)}.")
        flat = np.asarray(jacobian).reshape(self.shape[0], -1)
        reconstructed = flat @ np.asarray(self.x, flat.dtype).reshape(-1).astype(np.float64) + np.asarray(self.bias)
        return float(relative_error(np.linalg.norm(reconstructed - self.output), np.linalg.norm(self.output)))

    def jacobian(
        self, *, block: int | None = None, out: str | Path | None = None, progress: bool = True
    ) -> jax.Array | np.ndarray:
        """The dense $J$, ``[d, t, d]``, by blocks of rows.

        Args:
            block: rows computed together; chosen for memory unless given.
            out: write to this ``.npy`` file and return it memory-mapped, instead of keeping $J$ in memory. Interrupted,
                it leaves no such file, and the same call goes on where it stopped.
            progress: show a bar where the work takes longer than a second and a person is looking.

        Raises:
            JaxlinError: a block without rows; or `out` is there, cannot be written, or was begun for another map.
        """
        return dense_from_rows(
            self.rmatvec,
            self.shape,
            self.output.dtype,
            block=self.default_block if block is None else block,
            out=None if out is None else path_of(out),
            identity="" if out is None else self._identity(),
            progress=progress,
        )

    def _identity(self) -> str:
        """What tells this map's rows in a file from those of another."""
        said = hashlib.sha256(repr((self.shape, self.source, self.target, int(self.position), self.rule)).encode())
        said.update(fingerprint(self.model).encode())
        for array in (self.x, self.output):
            said.update(np.asarray(array).tobytes())
        return said.hexdigest()

    @property
    def default_block(self) -> int:
        """How many rows `jacobian` computes together: all of them where they fit and it saves operations.

        See `jaxlin.nn.folding.fold`. Otherwise as many as keep the widest layer in a CPU's cache, or as repay reading
        the weights.
        """
        (rows, _, d), size, tokens = self.shape, self.output.dtype.itemsize, self.frozen.tokens
        parts = row_parts(mesh_of(self.model))
        if rows * tokens * d * size <= block_sizes().dense_map and self._folds(rows):
            return -(-rows // parts) * parts
        return parts * default_block(-(-rows // parts), tokens, max(d, self.model.config.intermediate_size) * size)

    def svd(self, k: int = 8, *, method: str = "auto", tol: float | None = None, seed: int = 0) -> SVD:
        r"""The `k` largest singular triplets of the joint map, each with a bound, signed so that $u \cdot f \ge 0$.

        Args:
            k: how many.
            method: ``"dense"`` takes all rows of $J$; ``"krylov"`` takes products until the bounds hold, see
                `jaxlin.linearize.linalg`; ``"auto"`` the one that is expected to take less.
            tol: of each value, relative, for ``"krylov"``; 1e-5 in float32 and 1e-12 in float64 unless given.
            seed: of the start of ``"krylov"``.

        Raises:
            JaxlinError: `k` is no integer in 1..rank of the map; no such method; a tolerance that is not between 0 and
                1; a map in 16 bits, or within a transform.
        """
        if isinstance(self.output, jax.core.Tracer):
            raise JaxlinError(
                "SVD: expected arrays with values; found traced ones: LAPACK and Krylov run outside of jit and vmap. "
                "Within them, take jnp.linalg.svd of lmap.jacobian()."
            )
        check_dtype(self.output.dtype)
        check_count(k, self.shape)
        check_options(tol, seed)
        if method == "auto":
            method = cheaper(self.shape, k)
        if method == "dense":
            found = bounded_svd(np.asarray(self.jacobian()), self.matvec, k)
        elif method == "krylov":
            products = self.matvec, self.rmatvec
            found = krylov_svd(*products, self.shape, self.output.dtype, k, tol=tol, seed=seed, like=self.x)
        else:
            raise JaxlinError(f"SVD: expected the method auto, dense or krylov; found {quoted(method)}.")
        return found.signed(np.asarray(self.output))


@dataclass(frozen=True, eq=False)
class Transposed:
    r"""$J^\top$ of a `LocalMap`: ``lmap.T @ u``."""

    T: LocalMap

    def __matmul__(self, u: Shaped[Array | np.ndarray, "*b d"]) -> Float[Array, "*b t d"]:
        return self.T.rmatvec(u)


@jax.jit
def _push(lmap: LocalMap, v: Float[Array, "b t d"]) -> Float[Array, "b d"]:
    v = jnp.moveaxis(v[:, : lmap.frozen.tokens], 1, 0)
    return _held(lmap, without_biases(lmap.model), v, jnp.zeros_like(v))


@functools.partial(jax.jit, static_argnames="fold")
def _pull(lmap: LocalMap, u: Float[Array, "b d"], *, fold: bool) -> Float[Array, "b t d"]:
    reach, (tokens, d) = lmap.frozen.tokens, lmap.x.shape
    v = jax.ShapeDtypeStruct((reach, u.shape[0], d), lmap.x.dtype)
    rows, _ = transpose(functools.partial(_held, lmap, fold=fold), lmap.model, v, v)(u)
    return jnp.pad(jnp.moveaxis(rows, 0, 1), ((0, 0), (0, tokens - reach), (0, 0)))


def _held(
    lmap: LocalMap, bare: Decoder, v: Float[Array, "t b d"], stream: Float[Array, "t b d"], *, fold: bool = False
) -> Float[Array, "b d"]:
    """The map, linear in the value at its source and in the stream that enters the source's block beside it.

    Positions lead, and a batch comes after them: at each position, a matrix of the batch is multiplied as it lies.

    """
    queries, position = (1, 0) if lmap.at_last else (0, lmap.position)
    y = replay_between(
        bare, lmap.frozen, stream, lmap.source, lmap.target, {lmap.source: v}, queries=queries, fold=fold
    )
    return jax.lax.dynamic_index_in_dim(y, position, keepdims=False)
