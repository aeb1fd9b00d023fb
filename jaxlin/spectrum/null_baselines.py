r"""What the local linear map must be compared with: exact reconstruction and low rank alone say nothing about meaning.

$y x^\top / \lVert x \rVert^2$ reconstructs the output exactly, with one direction; so does the map of a model whose
weights are shuffled; and of the maps that hold the gate or the up branch both do, with other directions.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from jaxlin.common.arrays import equal_by_identity
from jaxlin.linearize.linalg.gram_matrix import gram_from_rows, singular_values
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import RULES, Rule, RuleName
from jaxlin.quantized import PackedMatrix
from jaxlin.spectrum.prediction_ranks import Ranks, ranks_of_spectrum

NAMES = ("local map", "y xᵀ/|x|²", "shuffled weights", "shuffled tokens", "ordinary Jacobian")
"""The rows of a table of baselines."""


@equal_by_identity
class Baseline(NamedTuple):
    r"""One row of the table.

    Attributes:
        name: of `NAMES`.
        residual: $\lVert J x + b - f(x) \rVert / \lVert f(x) \rVert$ for the model and prompt of the row; the ordinary
            Jacobian has no $b$.
        s: singular values, ``[d]``.
        ranks: of the joint map.
        without_first: of the map without the first token; None where there is no other.
    """

    name: str
    residual: float
    s: Float[np.ndarray, " d"]
    ranks: Ranks
    without_first: Ranks | None


@equal_by_identity
class Turn(NamedTuple):
    """How far the leading subspaces of two rules' maps turn from each other.

    Attributes:
        rules: the two.
        left: the principal angles of the spaces of left vectors, in degrees, the smallest first, ``[k]``.
        right: those of the right vectors.
    """

    rules: tuple[Rule, Rule]
    left: Float[np.ndarray, " k"]
    right: Float[np.ndarray, " k"]


@dataclass(frozen=True, eq=False)
class Baselines:
    """What `compare_baselines` found; `str` gives a table.

    Attributes:
        rows: the map and the four maps beside it.
        turns: of each pair of rules.
        seed: of the shuffles.
    """

    rows: tuple[Baseline, ...]
    turns: tuple[Turn, ...]
    seed: int

    def __str__(self) -> str:
        head = ("", "residual", "σ1", "stable", "effective", "90 %", "99 %")
        lines = [(f"{head[0]:20}" + "".join(f"{cell:>11}" for cell in head[1:]))]
        for name, residual, s, ranks, _ in self.rows:
            figures = (f"{residual:.1e}", f"{s[0]:.4g}", f"{ranks.stable:.3g}", f"{ranks.effective:.4g}")
            counts = (str(ranks.energy90), str(ranks.energy99))
            lines.append(f"{name:20}" + "".join(f"{cell:>11}" for cell in (*figures, *counts)))
        for (one, other), left, right in self.turns:
            spans = (f"{angles[0]:.0f}° to {angles[-1]:.0f}°" for angles in (left, right))
            lines.append(f"{one} / {other}".ljust(20) + "  left vectors turn by {}, right by {}".format(*spans))
        return "\n".join(lines)


def compare_baselines(
    model: Decoder, x: Float[Array, "t d"], *, position: int = -1, rule: Rule | None = None, k: int = 8, seed: int = 0
) -> Baselines:
    """The local linear map at `x` beside its null baselines, and how far it depends on the freeze rule.

    Args:
        model: any decoder.
        x: the input embeddings.
        position: the position of the output.
        rule: the freeze rule of the map; the model's own unless given.
        k: how many directions are compared between rules.
        seed: of the shuffles.

    Raises:
        SiteError: no such position.
        JaxlinError: no such rule; `k` is larger than the rank of the map.
    """
    lmap = local_map(model, x, position=position, rule=rule)
    token_key, weight_key = jax.random.split(jax.random.key(seed))
    # Tokens after the position are not seen: those up to it are shuffled among themselves.
    order = np.arange(len(x))
    order[: int(lmap.position) + 1] = jax.random.permutation(token_key, int(lmap.position) + 1)
    shuffled = local_map(shuffled_weights(model, weight_key), x, position=position, rule=rule)
    elsewhere = local_map(model, x[jnp.asarray(order)], position=position, rule=rule)
    rows = (
        _of_map(NAMES[0], lmap),
        _rank_one(lmap),
        _of_map(NAMES[2], shuffled),
        _of_map(NAMES[3], elsewhere),
        _ordinary(lmap),
    )
    return Baselines(rows, rule_turns(model, x, position=position, k=k), seed)


def rule_turns(model: Decoder, x: Float[Array, "t d"], *, position: int = -1, k: int = 8) -> tuple[Turn, ...]:
    """How far the spaces of the `k` leading left and right vectors turn between the freeze rules.

    Raises:
        SiteError: no such position.
        JaxlinError: `k` is larger than the rank of a map.
    """
    found: dict[RuleName, SVD] = {rule: local_map(model, x, position=position, rule=rule).svd(k) for rule in RULES}
    return tuple(
        Turn(
            (one, other),
            principal_angles(found[one].u.T, found[other].u.T),
            principal_angles(found[one].v.reshape(k, -1), found[other].v.reshape(k, -1)),
        )
        for one, other in combinations(RULES, 2)
    )


def principal_angles(a: Float[np.ndarray, "k n"], b: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
    """The principal angles, in degrees, between the spaces that two sets of rows span, the smallest first."""
    return np.degrees(scipy.linalg.subspace_angles(a.astype(np.float64).T, b.astype(np.float64).T))[::-1]


def shuffled_weights(model: Decoder, key: Array) -> Decoder:
    """`model` with the entries of each weight matrix of each block permuted; norms, biases, embeddings stay.

    Quantised matrices are unpacked: what is shuffled are their values.
    """
    count = 0

    def permuted(path: tuple[object, ...], leaf: Any) -> Any:
        nonlocal count
        inside = any(getattr(step, "name", None) == "layers" for step in path)
        if not inside or leaf.ndim < 3:
            return leaf
        count += 1
        values = leaf[...]
        flat = values.reshape(values.shape[0], -1)
        keys = jax.random.split(jax.random.fold_in(key, count), values.shape[0])
        return jax.vmap(jax.random.permutation)(keys, flat).reshape(values.shape)

    return jax.tree_util.tree_map_with_path(permuted, model, is_leaf=lambda node: isinstance(node, PackedMatrix))


def _of_map(name: str, lmap: LocalMap) -> Baseline:
    return _row(name, lmap.residual, lmap.rmatvec, lmap)


def _row(name: str, residual: float, pull: Callable[[Array], Array], lmap: LocalMap) -> Baseline:
    found = gram_from_rows(pull, lmap.shape, lmap.output.dtype, block=lmap.default_block)
    s = singular_values(found.whole)
    rest = ranks_of_spectrum(singular_values(found.rest)) if np.any(found.rest) else None
    return Baseline(name, residual, s, ranks_of_spectrum(s), rest)


def _rank_one(lmap: LocalMap) -> Baseline:
    r"""$(f - b)\,x^\top / \lVert x \rVert^2$ over the tokens that are seen."""
    x = np.asarray(lmap.x, np.float64)[: int(lmap.position) + 1]
    y = np.asarray(lmap.output, np.float64) - np.asarray(lmap.bias)
    jacobian = np.einsum("d,te->dte", y, x) / np.sum(x**2)
    residual = np.linalg.norm(np.einsum("dte,te->d", jacobian, x) - y) / np.linalg.norm(lmap.output)
    s = np.zeros(len(y))
    s[0] = np.linalg.norm(y) / np.linalg.norm(x)
    without = s * np.linalg.norm(x[1:]) / np.linalg.norm(x)
    return Baseline(
        NAMES[1], float(residual), s, ranks_of_spectrum(s), ranks_of_spectrum(without) if len(x) > 1 else None
    )


def _ordinary(lmap: LocalMap) -> Baseline:
    """The derivative of the model as it is, with nothing held."""
    pull = functools.partial(_pull_ordinary, lmap.model, lmap.x, lmap.position)
    pushed = push_ordinary(lmap.model, lmap.x, lmap.position)
    residual = float(jnp.linalg.norm(pushed - lmap.output) / jnp.linalg.norm(lmap.output))
    return _row(NAMES[4], residual, pull, lmap)


def _plain(model: Decoder, x: Float[Array, "t d"], position: Array) -> Float[Array, " d"]:
    stream, _ = model.scan(x, lambda _: Context())
    y = model.norm(stream, Context())
    return jax.lax.dynamic_index_in_dim(y, position, keepdims=False)


@jax.jit
def _pull_ordinary(
    model: Decoder, x: Float[Array, "t d"], position: Array, u: Float[Array, "b d"]
) -> Float[Array, "b t d"]:
    _, pull = jax.vjp(lambda x: _plain(model, x, position), x)
    return jax.vmap(lambda u: pull(u)[0])(u)


@jax.jit
def push_ordinary(model: Decoder, x: Float[Array, "t d"], position: Array) -> Float[Array, " d"]:
    r"""$(\partial f / \partial x)\,x$ at `position`, nothing held: what the ordinary Jacobian makes of the input."""
    return jax.jvp(lambda x: _plain(model, x, position), (x,), (x,))[1]
