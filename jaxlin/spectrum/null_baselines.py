r"""Null baselines of the local linear map, because exact reconstruction and a low rank do not show that it has meaning.

The matrix $y x^\top / \lVert x \rVert^2$ has rank one and reconstructs the output exactly. So does the local linear map
of a model with shuffled weights, and so does the map under each freeze rule, though their singular vectors differ.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin import plots
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.linearize.linalg.gram_matrix import gram_from_rows, singular_values
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import RULES, Rule, RuleName
from jaxlin.nn.prompt import Embeddings, array_of, bound_like
from jaxlin.quantized import PackedMatrix
from jaxlin.results import Result, html, traced_to
from jaxlin.results.tables import scalars, stacked
from jaxlin.spectrum.prediction_ranks import Ranks, ranks_of_spectrum

ROW_NAMES = ("local map", "y xᵀ/|x|²", "shuffled weights", "shuffled tokens", "ordinary Jacobian")
"""The names of the rows of `Baselines`, in order."""


@dataclass(frozen=True, eq=False, repr=False)
class Baseline(Result):
    r"""One row of the table of baselines.

    Attributes:
        name: one of `ROW_NAMES`.
        residual: $\lVert J x + b - f(x) \rVert / \lVert f(x) \rVert$ for the model and prompt of the row; the ordinary
            Jacobian has no $b$.
        s: the singular values of the joint map, ``[d]``.
        ranks: the ranks of the joint map.
        without_first: the ranks of the map without the first token; None where there is no other token.
    """

    AXES: ClassVar = {"s": ("triplet",)}

    name: str
    residual: float
    s: Float[np.ndarray, " d"]
    ranks: Ranks
    without_first: Ranks | None

    def _draw(self, ax: Any) -> None:
        """The singular values on a logarithmic scale."""
        plots.curves(ax, np.arange(1, len(self.s) + 1), {self.name: self.s}, log=True)
        plots.write(ax, title=f"Singular values: {self.name}", xlabel="triplet", ylabel="σ")


@dataclass(frozen=True, eq=False, repr=False)
class RuleAngles(Result):
    """The angles between the leading singular subspaces of the maps under two freeze rules.

    Attributes:
        rules: the two freeze rules.
        left: the principal angles between the spaces of left vectors, in degrees, the smallest first, ``[k]``.
        right: the principal angles between the spaces of right vectors.
    """

    AXES: ClassVar = dict.fromkeys(("left", "right"), ("angle",))

    rules: tuple[Rule | str, Rule | str]
    left: Float[np.ndarray, " k"]
    right: Float[np.ndarray, " k"]

    def _draw(self, ax: Any) -> None:
        """The angles of left and right vectors."""
        one, other = self.rules
        plots.curves(ax, np.arange(1, len(self.left) + 1), {"left vectors": self.left, "right vectors": self.right})
        plots.write(ax, title=f"Angles between the maps of {one} and {other}", xlabel="angle", ylabel="degrees")


@dataclass(frozen=True, eq=False)
class Baselines(Result):
    """The result of `compare_baselines`; `str` formats it as a table.

    Attributes:
        rows: the local linear map and its four baselines.
        angles: the angles between the maps of each pair of freeze rules.
        seed: the seed of the shuffles.
    """

    rows: tuple[Baseline, ...]
    angles: tuple[RuleAngles, ...]
    seed: int

    def __str__(self) -> str:
        header = ("residual", "σ1", "stable", "effective", "90 %", "99 %")
        lines = [" " * 20 + "".join(f"{cell:>11}" for cell in header)]
        for row in self.rows:
            name, residual, s, ranks = row.name, row.residual, row.s, row.ranks
            values = (f"{residual:.1e}", f"{s[0]:.4g}", f"{ranks.stable:.3g}", f"{ranks.effective:.4g}")
            counts = (str(ranks.energy90), str(ranks.energy99))
            lines.append(f"{name:20}" + "".join(f"{cell:>11}" for cell in (*values, *counts)))
        for turn in self.angles:
            (one, other), left, right = turn.rules, turn.left, turn.right
            ranges = (f"{angles[0]:.0f}° to {angles[-1]:.0f}°" for angles in (left, right))
            lines.append(f"{one} / {other}".ljust(20) + "  left vectors turn by {}, right by {}".format(*ranges))
        return "\n".join(lines)

    def tables(self) -> list[dict[str, Any]]:
        """A row for each map, with its residual, its largest singular value and its ranks."""
        rows = [
            {"map": row.name, "residual": row.residual, "σ1": float(row.s[0]), **scalars(row.ranks)}
            for row in self.rows
        ]
        return [stacked([{key: [value] for key, value in row.items()} for row in rows])]

    def _draw(self, ax: Any) -> None:
        """The spectra of the map and of its baselines, on a logarithmic scale."""
        plots.curves(ax, np.arange(1, len(self.rows[0].s) + 1), {row.name: row.s for row in self.rows}, log=True)
        ax.set_ylim(bottom=float(self.rows[0].s[0]) * 1e-6)
        plots.write(ax, title="Spectra of the map and of its null baselines", xlabel="triplet", ylabel="σ")

    def _repr_html_(self) -> str:
        """A row for each map."""
        return html.heading(self) + html.rows(self, self.tables()[0])


@checked
def compare_baselines(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    *,
    position: int = -1,
    rule: Rule | None = None,
    k: int = 8,
    seed: int = 0,
) -> Baselines:
    """Compare the local linear map at `x` with its null baselines, and the maps under the freeze rules with each other.

    Args:
        model: any decoder.
        x: the input embeddings.
        position: the position of the output; a negative one counts from the last token.
        rule: the freeze rule of the map, by default the model's own.
        k: the number of leading singular vectors whose spaces are compared between freeze rules.
        seed: the seed of the shuffles.

    Raises:
        SiteError: there is no such position.
        JaxlinError: there is no such rule, or `k` is larger than the rank of a map.
    """
    check_not_traced("Baselines", model, x)
    lmap = local_map(model, x, position=position, rule=rule)
    token_key, weight_key = jax.random.split(jax.random.key(seed))
    # The output does not depend on later tokens, so only the tokens up to the position are shuffled.
    order = np.arange(len(x))
    order[: int(lmap.position) + 1] = jax.random.permutation(token_key, int(lmap.position) + 1)
    weights_map = local_map(shuffled_weights(model, weight_key), x, position=position, rule=rule)
    tokens_map = local_map(model, x[jnp.asarray(order)], position=position, rule=rule)
    rows = (
        _local_map_row(ROW_NAMES[0], lmap),
        _rank_one_row(lmap),
        _local_map_row(ROW_NAMES[2], weights_map),
        _local_map_row(ROW_NAMES[3], tokens_map),
        _ordinary_row(lmap),
    )
    result = Baselines(rows, rule_angles(model, x, position=position, k=k), seed)
    return traced_to(result, model, x, rule=rule, position=position, seed=seed)


@checked
def rule_angles(
    model: Decoder, x: Float[Embeddings, "t d"], *, position: int = -1, k: int = 8
) -> tuple[RuleAngles, ...]:
    """The angles between the spaces of the `k` leading singular vectors, for each pair of freeze rules.

    The errors are those of `compare_baselines`.
    """
    svds: dict[RuleName, SVD] = {rule: local_map(model, x, position=position, rule=rule).svd(k) for rule in RULES}
    return tuple(
        RuleAngles(
            (one, other),
            principal_angles(svds[one].u.T, svds[other].u.T),
            principal_angles(svds[one].v.reshape(k, -1), svds[other].v.reshape(k, -1)),
        )
        for one, other in combinations(RULES, 2)
    )


@checked
def principal_angles(a: Float[np.ndarray, "k n"], b: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
    """The principal angles, in degrees, between the spaces that two sets of rows span, the smallest first."""
    # Imported here because scipy.linalg takes a tenth of a second to import, and only baselines need it.
    from scipy.linalg import subspace_angles

    return np.degrees(subspace_angles(a.astype(np.float64).T, b.astype(np.float64).T))[::-1]


@checked
def shuffled_weights(model: Decoder, key: Array) -> Decoder:
    """`model` with the entries of each weight matrix of each block permuted, and all other parameters unchanged.

    Quantised matrices are unpacked, and their values are permuted.

    Raises:
        JaxlinError: the model or the key is traced, within a transform of JAX.
    """
    check_not_traced("Shuffled weights", model, key)
    # NumPy permutes in one pass; jax.random.permutation sorts each matrix twice, which takes minutes on a CPU.
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def permuted(path: tuple[object, ...], parameter: Any) -> Any:
        in_block = any(getattr(step, "name", None) == "layers" for step in path)
        if not in_block or parameter.ndim < 3:  # parameters of blocks are stacked over layers: a matrix has 3 axes
            return parameter
        values = parameter[...]
        flat = np.asarray(values).reshape(values.shape[0], -1)
        return jax.device_put(generator.permuted(flat, axis=1).reshape(values.shape), values.sharding)

    return jax.tree_util.tree_map_with_path(permuted, model, is_leaf=lambda node: isinstance(node, PackedMatrix))


def _local_map_row(name: str, lmap: LocalMap) -> Baseline:
    return _row_of_operator(name, lmap.residual, lmap.rmatvec, lmap)


def _row_of_operator(name: str, residual: float, rmatvec: Callable[[Array], Array], lmap: LocalMap) -> Baseline:
    gram = gram_from_rows(rmatvec, lmap.shape, lmap.output.dtype, block=lmap.default_block)
    s = singular_values(gram.joint)
    without_first = ranks_of_spectrum(singular_values(gram.rest)) if np.any(gram.rest) else None
    return Baseline(name, residual, s, ranks_of_spectrum(s), without_first)


def _rank_one_row(lmap: LocalMap) -> Baseline:
    r"""The row of $(f - b)\,x^\top / \lVert x \rVert^2$ over the tokens up to the position."""
    x = np.asarray(lmap.x, np.float64)[: int(lmap.position) + 1]
    y = np.asarray(lmap.output, np.float64) - np.asarray(lmap.bias)
    jacobian = np.einsum("d,te->dte", y, x) / np.sum(x**2)
    residual = np.linalg.norm(np.einsum("dte,te->d", jacobian, x) - y) / np.linalg.norm(lmap.output)
    s = np.zeros(len(y))
    s[0] = np.linalg.norm(y) / np.linalg.norm(x)
    s_without_first = s * np.linalg.norm(x[1:]) / np.linalg.norm(x)
    without_first = ranks_of_spectrum(s_without_first) if len(x) > 1 else None
    return Baseline(ROW_NAMES[1], float(residual), s, ranks_of_spectrum(s), without_first)


def _ordinary_row(lmap: LocalMap) -> Baseline:
    """The row of the ordinary Jacobian: the derivative of the model with nothing frozen."""
    rmatvec = functools.partial(_ordinary_rmatvec, lmap.model, lmap.x, lmap.position)
    product = ordinary_product(lmap.model, lmap.x, lmap.position)
    residual = float(jnp.linalg.norm(product - lmap.output) / jnp.linalg.norm(lmap.output))
    return _row_of_operator(ROW_NAMES[4], residual, rmatvec, lmap)


def _ordinary_output(model: Decoder, x: Float[Embeddings, "t d"], position: Array) -> Float[Array, " d"]:
    # Not `model(x)`, whose derivative is that of the frozen model after ``load(..., linearize=True)``.
    stream, _ = model.scan(x, lambda _: Context())
    return jax.lax.dynamic_index_in_dim(model.norm(stream, Context()), position, keepdims=False)


@jax.jit
def _ordinary_rmatvec(
    model: Decoder, x: Float[Embeddings, "t d"], position: Array, u: Float[Array, "b d"]
) -> Float[Array, "b t d"]:
    _, vjp = jax.vjp(lambda stream: _ordinary_output(model, bound_like(x, stream), position), array_of(x))
    return jax.vmap(lambda u: vjp(u)[0])(u)


@jax.jit
def ordinary_product(model: Decoder, x: Float[Embeddings, "t d"], position: Array) -> Float[Array, " d"]:
    r"""The ordinary Jacobian at `position` times the input, $(\partial f / \partial x)\,x$, with nothing frozen."""
    stream = array_of(x)
    return jax.jvp(lambda stream: _ordinary_output(model, bound_like(x, stream), position), (stream,), (stream,))[1]
