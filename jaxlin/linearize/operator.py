r"""`LocalMap`: the exact local linear map $f(x) = \sum_t J_t x_t + b$ of a decoder, as an operator.

Rows of $J$ come from the transpose of the frozen model, which runs no forward pass and multiplies no queries, keys or
gates. Source of the map: arXiv 2505.24293. The operator form is new here.
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
from jaxlin.linearize import products
from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.linearize.linalg.lanczos import cheaper, check_options, krylov_svd
from jaxlin.linearize.linalg.triplets import SVD, bounded_svd, check_count, check_dtype
from jaxlin.linearize.residuals import ResidualEstimate, check_request, estimate
from jaxlin.linearize.rows import block_sizes, default_block, dense_from_rows, npy_path
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.fingerprints import fingerprint
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.sharding import mesh_of, row_parts, spread_rows
from jaxlin.nn.sites import Place
from jaxlin.results import traced_to


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
        bias: $b$, ``[d]``: the part of $f$ that does not pass through the source, never computed as $f - Jx$. From
            every source but ``attn_out`` and ``mlp_out`` it comes from the model's additive biases alone,
            $\sum_\beta (\partial f/\partial\beta)\,\beta$, and is exactly zero in a model without biases.
        frozen: the frozen factors of the first positions. No position after `position` affects the output, so that
            most of those are cut off (see `jaxlin.linearize.local_maps.MAX_PROMPT_CUTS`).
        position: the position of the output, counted from the first token.
        source: the source in canonical form.
        target: the target in canonical form.
        is_last_position: whether `position` is the last one of `frozen`; the last block then computes only that one.
    """

    model: Decoder
    x: Leaf
    output: Leaf
    bias: Leaf
    frozen: FrozenFactors
    position: Leaf
    source: Place = field(metadata={"static": True})
    target: Place = field(metadata={"static": True})
    is_last_position: bool = field(metadata={"static": True})

    def __repr__(self) -> str:
        # np.shape, because within transforms JAX replaces the arrays. In a batch of maps both have its axes.
        output, x = np.shape(self.output), np.shape(self.x)
        shape = (*output, *x[max(0, len(output) - 1) :])
        return f"LocalMap(shape={shape}, source={self.source}, target={self.target}, rule={self.rule!r})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(d, t, d)``: output features, input tokens, input features.

        Raises:
            JaxlinError: this is a batch of maps, from `jax.vmap` of `local_map`.
        """
        if len(self.output.shape) != 1:
            raise JaxlinError(
                f"Local map: expected one; found a batch of shape {self.output.shape[:-1]}, from jax.vmap. "
                "Use it within jax.vmap too: jax.vmap(lambda lmap, v: lmap @ v)(maps, vs)."
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
        """$J v$ for each `v` along the leading axes."""
        v, batch = self._to_batch(v, self.shape[1:])
        return products.matvec(self, spread_rows(v, mesh_of(self.model))).reshape(*batch, *self.output.shape)

    def rmatvec(self, u: Shaped[Array | np.ndarray, "*b d"]) -> Float[Array, "*b t d"]:
        r"""$J^\top u$ for each `u` along the leading axes: the gradient of $u \cdot f$ with every factor frozen."""
        u, batch = self._to_batch(u, self.shape[:1])
        out = products.rmatvec(self, spread_rows(u, mesh_of(self.model)), fold=products.fold_rows(self, u.shape[0]))
        return out.reshape(*batch, *self.x.shape)

    def _to_batch(self, a: Any, tail: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        """`a` with its leading axes merged into one, and their sizes; `tail` is the expected shape of the others."""
        try:
            is_complex = jnp.iscomplexobj(a)
            a = a if is_complex else jnp.asarray(a, self.output.dtype)
        except (TypeError, ValueError) as error:
            raise JaxlinError(f"Local map: expected an array of numbers; found {quoted(a)}.") from error
        if is_complex:
            raise JaxlinError("Local map: expected real vectors; found complex ones. Apply the map to each part.")
        batch = a.shape[: -len(tail)]
        if a.shape[-len(tail) :] != tail:
            raise JaxlinError(
                f"Local map: expected a vector of shape (..., {', '.join(map(str, tail))}); found {a.shape}."
            )
        return a.reshape(math.prod(batch), *tail), batch

    @functools.cached_property
    def residual(self) -> Leaf:
        r"""$\lVert J x + b - f(x) \rVert / \lVert f(x) \rVert$, the error with which this map reconstructs the output.

        It is that of `estimate_residual`, whose default costs no more than the forward pass that recorded this map: in
        32 random directions for a short prompt, in one for a long prompt. For more digits ask that method for more
        directions, or take `residual_of` a dense map, which has no sampling error. If the model's output is zero, as
        it is for zero embeddings in a model without biases, the residual is zero if that of the map is too.
        """
        return self._estimate.value

    @functools.cached_property
    def _estimate(self) -> ResidualEstimate:
        return estimate(self, None, 0.95, 0, True)

    def estimate_residual(
        self, directions: int | None = None, *, confidence: float = 0.95, seed: int = 0, progress: bool = True
    ) -> ResidualEstimate:
        r"""The `residual` in random directions $u$, for which $\mathbb{E}\,(u \cdot r)^2 = \lVert r \rVert^2$.

        It is measured through the transpose, because the forward product `lmap @ x` repeats the model's own arithmetic
        and would prove nothing.

        Args:
            directions: how many; each costs a row of the map. By default as many as cost no more than the forward pass
                that recorded the map, or than some hundredths of a second, and 1 to 32: the number follows from shapes
                alone. With ``remat=True`` one costs more than that pass, because it repeats it.
            confidence: the probability with which the interval holds the residual.
            seed: the seed of the directions.
            progress: whether to show a bar, in a terminal, if the work takes longer than a second.

        Raises:
            JaxlinError: `directions` is not an integer of at least 1, `confidence` is not between 0 and 1, or `seed` is
                not an integer.
        """
        check_request(directions, confidence, seed)
        if directions is None and (confidence, seed) == (0.95, 0):
            return self._estimate
        return estimate(self, directions, confidence, seed, progress)

    def residual_of(self, jacobian: Any) -> float:
        r"""$\lVert J x + b - f(x) \rVert / \lVert f(x) \rVert$ of a dense $J$, ``[d, t, d]``, summed in float64.

        Raises:
            JaxlinError: `jacobian` has another shape.
        """
        if np.shape(jacobian) != self.shape:
            raise JaxlinError(f"Residual: expected a dense map of shape {self.shape}; found {np.shape(jacobian)}.")
        flat = np.asarray(jacobian).reshape(self.shape[0], -1)
        reconstructed = flat @ np.asarray(self.x, flat.dtype).reshape(-1).astype(np.float64) + np.asarray(self.bias)
        return float(relative_error(np.linalg.norm(reconstructed - self.output), np.linalg.norm(self.output)))

    def jacobian(
        self, *, block: int | None = None, out: str | Path | None = None, progress: bool = True
    ) -> jax.Array | np.ndarray:
        """The dense $J$, ``[d, t, d]``, computed in blocks of rows.

        Args:
            block: how many rows to compute together; `default_block` if None.
            out: a ``.npy`` file to write $J$ to, which is returned memory-mapped. It appears once it is complete; after
                an interruption, the same call continues where the last one stopped.
            progress: whether to show a bar, in a terminal, if the work takes longer than a second.

        Raises:
            JaxlinError: `block` is less than 1; or `out` exists, cannot be written, or was begun with another map.
        """
        return dense_from_rows(
            self.rmatvec,
            self.shape,
            self.output.dtype,
            block=self.default_block if block is None else block,
            out=None if out is None else npy_path(out),
            identity="" if out is None else self._identity(),
            progress=progress,
        )

    def _identity(self) -> str:
        """A hash that tells the rows of this map in a file from those of another map."""
        digest = hashlib.sha256(repr((self.shape, self.source, self.target, int(self.position), self.rule)).encode())
        digest.update(fingerprint(self.model).encode())
        for array in (self.x, self.output):
            digest.update(np.asarray(array).tobytes())
        return digest.hexdigest()

    @property
    def default_block(self) -> int:
        """How many rows `jacobian` computes together: all of them, if they fit and folding MLPs then saves operations.

        See `jaxlin.nn.folding.fold`. Otherwise it is as many rows as keep the activations of the widest layer in a
        CPU's cache, and at least as many as make reading the weights worthwhile.
        """
        (rows, _, d), size, tokens = self.shape, self.output.dtype.itemsize, self.frozen.tokens
        parts = row_parts(mesh_of(self.model))
        if rows * tokens * d * size <= block_sizes().dense_map and products.fold_rows(self, rows):
            return -(-rows // parts) * parts
        return parts * default_block(-(-rows // parts), tokens, max(d, self.model.config.neurons) * size)

    def svd(self, k: int = 8, *, method: str = "auto", tol: float | None = None, seed: int = 0) -> SVD:
        r"""The `k` largest singular triplets of the joint map, each with a bound, signed so that $u \cdot f \ge 0$.

        Args:
            k: how many triplets.
            method: ``"dense"`` computes all rows of $J$; ``"krylov"`` computes products until the bounds are below
                `tol`, see `jaxlin.linearize.linalg`; ``"auto"`` takes the method that is expected to be faster.
            tol: the relative tolerance of each value for ``"krylov"``, by default 1e-5 in float32 and 1e-12 in float64.
            seed: the seed of the random start of ``"krylov"``.

        Raises:
            JaxlinError: `k` is not an integer in 1..rank of the map; there is no such method; `tol` is not between 0
                and 1; the map is in 16 bits or within a transform.
        """
        if isinstance(self.output, jax.core.Tracer):
            raise JaxlinError(
                "SVD: expected arrays with values; found traced ones: neither method runs within jit or vmap. "
                "Within them, take jnp.linalg.svd of lmap.jacobian()."
            )
        check_dtype(self.output.dtype)
        check_count(k, self.shape)
        check_options(tol, seed)
        if method == "auto":
            method = cheaper(self.shape, k)
        if method == "dense":
            triplets = bounded_svd(np.asarray(self.jacobian()), self.matvec, k)
        elif method == "krylov":
            products = self.matvec, self.rmatvec
            triplets = krylov_svd(*products, self.shape, self.output.dtype, k, tol=tol, seed=seed, like=self.x)
        else:
            raise JaxlinError(f"SVD: expected the method auto, dense or krylov; found {quoted(method)}.")
        signed = triplets.signed(np.asarray(self.output))
        settings = {"position": self.position, "source": str(self.source), "target": str(self.target)}
        return traced_to(signed, self.model, self.x, rule=self.rule, **settings)


@dataclass(frozen=True, eq=False)
class Transposed:
    r"""The transpose $J^\top$ of a `LocalMap`, which is its attribute `T`."""

    T: LocalMap

    def __matmul__(self, u: Shaped[Array | np.ndarray, "*b d"]) -> Float[Array, "*b t d"]:
        return self.T.rmatvec(u)
