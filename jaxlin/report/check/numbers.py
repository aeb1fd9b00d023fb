"""Numerical checks of a model: its logits computed in several ways, and the proofs of its local linear map.

The bars are those of the project's own tests, for tiny models of every family: see PARITY.md.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.linearize.frozen import replay
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.residuals import MAX_DIRECTIONS, interval_factors
from jaxlin.nn.decoder import Decoder
from jaxlin.report.check.results import Line, measured

Prompts = Int[np.ndarray, "n t"]
"""Token ids, of prompts of one length."""

LOGITS = 4e-6
"""The error of float32 logits after four layers, relative to the largest logit: 2e-5 if that is about 5."""

RESIDUAL = {"float32": 3e-6, "float64": 1e-13}
"""The largest residual of a map that is right."""

AFFINE = 1e-12
"""The largest error of a replayed map as an affine function, in float64, relative to its values."""

CORRUPTED = 1e-4
"""The residual must be larger than this if one frozen factor of the last layer is wrong by 1 %."""

COLUMNS = 4096
"""The number of logits that are compared, so that the unembedding of a large vocabulary takes little memory."""


def logits_bar(layers: int) -> float:
    """The bar for a model of so many layers: rounding errors add up as a random walk, as the root of the depth."""
    return LOGITS * max(1.0, layers / 4) ** 0.5


def variant(model: Decoder, **changes: Any) -> Decoder:
    """The same arrays in a model with other attributes."""
    other = jax.tree.map(lambda a: a, model)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def difference(a: Any, b: Any) -> float:
    """The largest difference of two arrays, relative to the largest entry of the second."""
    return float(np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b)))


def singles(model: Decoder, prompts: Prompts, *, every: bool = False) -> list[np.ndarray]:
    """The logits of each prompt alone: those of `every` token, or of `COLUMNS` tokens of a large vocabulary."""
    columns = None if every else _columns(model)
    return [np.asarray(_logits(model, jnp.asarray(ids), columns)) for ids in prompts]


@jax.jit
def _logits(model: Decoder, ids: Int[Array, " t"], columns: Int[Array, " n"] | None = None) -> Float[Array, "t n"]:
    output = model(model.embed(ids))
    return output if model.lm_head is None else model.unembed(output, ids=columns)


def _columns(model: Decoder) -> Int[Array, " n"]:
    return jnp.asarray(np.unique(np.linspace(0, model.config.vocab_size - 1, COLUMNS).astype(int)))


def in_64_bits(measure: Callable[[], float]) -> Callable[[], float]:
    """`measure` in JAX's 64-bit mode, which is switched back afterwards."""

    def measure_in_64_bits() -> float:
        with jax.enable_x64(True):
            return measure()

    return measure_in_64_bits


def precision_line(model: Decoder, prompts: Prompts) -> Line:
    """Logits in float32 against float64."""
    wide = variant(model, dtype="float64")
    return _logits_line(
        "logits, float32 against float64",
        model,
        in_64_bits(lambda: max(map(difference, singles(model, prompts), singles(wide, prompts)))),
    )


def batch_line(model: Decoder, prompts: Prompts) -> Line:
    """Logits of all prompts in one batch against those of each prompt alone."""

    def measure() -> float:
        batch = jax.jit(jax.vmap(_logits, in_axes=(None, 0, None)))(model, jnp.asarray(prompts), _columns(model))
        return max(map(difference, batch, singles(model, prompts)))

    return _logits_line("logits, batched against single", model, measure)


def linearized_line(model: Decoder, prompts: Prompts) -> Line:
    """The logits of the linearized model, which must be bit-identical to those of the plain model."""
    linearized = variant(model, linearize=True)

    def differing() -> float:
        pairs = zip(singles(linearized, prompts), singles(model, prompts), strict=True)
        return sum(float(np.sum(a != b)) for a, b in pairs)

    return measured("logits, linearized against plain", 0.0, differing, note="logits that differ in a bit")


def _logits_line(name: str, model: Decoder, measure: Callable[[], float]) -> Line:
    note = (
        "relative to the largest logit" if model.config.has_unembedding else "relative to the largest output; no logits"
    )
    return measured(name, logits_bar(model.config.num_hidden_layers), measure, note=note)


def residual_line(model: Decoder, prompts: Prompts) -> Line:
    """The residual of the map at the first prompt, in float32."""
    return measured(
        "residual, float32", RESIDUAL["float32"], lambda: residual_of(_map(model, prompts)), note=residual_note()
    )


def wide_residual_line(model: Decoder, prompts: Prompts) -> Line:
    """The residual of the map at the first prompt, in float64."""
    wide = variant(model, dtype="float64")
    residual = in_64_bits(lambda: residual_of(_map(wide, prompts)))
    return measured("residual, float64", RESIDUAL["float64"], residual, note=residual_note())


def corrupted_line(model: Decoder, prompts: Prompts) -> Line:
    """The residual of a map with one wrong frozen factor, which must be large: the proof must fail."""
    wide, note = variant(model, dtype="float64"), "residual with one frozen factor 1 % off"
    smallest = in_64_bits(lambda: corrupted(_map(wide, prompts)))
    return measured("a wrong factor is noticed", CORRUPTED, smallest, above=True, note=note)


def affine_line(model: Decoder, prompts: Prompts) -> Line:
    """The replayed map far from the prompt, where a factor that was not frozen would show as an error."""
    wide, note = variant(model, dtype="float64"), "relative error, far from the prompt"
    return measured("the map is affine", AFFINE, in_64_bits(lambda: affinity(_map(wide, prompts))), note=note)


def _map(model: Decoder, prompts: Prompts) -> LocalMap:
    return local_map(model, model.embed(jnp.asarray(prompts[0])))


def residual_of(lmap: LocalMap) -> float:
    """The residual in so many directions that it is good to a fifth or so: a wrong factor in one layer may be small."""
    return float(lmap.estimate_residual(MAX_DIRECTIONS, progress=False).value)


def residual_note() -> str:
    """The formula, and how far `residual_of` may be off with a confidence of 95 %."""
    lower, upper = interval_factors(MAX_DIRECTIONS)
    return f"|Jx + b - f(x)| / |f(x)|, {100 * lower - 100:+.0f} to {100 * upper - 100:+.0f} %"


def corrupted(lmap: LocalMap) -> float:
    """The residual with one frozen factor of the last layer 1 % too large: the smallest over all factors."""
    factors, structure = jax.tree.flatten(lmap.frozen.layers)
    residuals = []
    for i, factor in enumerate(factors):
        if not jnp.issubdtype(factor.dtype, jnp.floating):
            continue  # the positions of tokens and the indices of experts are no sizes that could be 1 % off
        wrong = structure.unflatten([*factors[:i], factor.at[-1].multiply(1.01), *factors[i + 1 :]])
        residuals.append(residual_of(replace(lmap, frozen=replace(lmap.frozen, layers=wrong))))
    return min(residuals)


def affinity(lmap: LocalMap) -> float:
    r"""The error of the replayed map as an affine function at random points, and against the rows of its transpose.

    An affine $g$ has $g(3y - 2z) = 3 g(y) - 2 g(z)$; and $g(y)$ must be what the rows and the bias of the `LocalMap`
    give.
    """
    rng = np.random.default_rng(0)
    y, z = rng.normal(size=(2, *lmap.x.shape)) * float(jnp.std(lmap.x))
    points = jnp.stack([y, z, 3 * y - 2 * z], axis=1)
    g_y, g_z, g_combined = np.asarray(jax.jit(replay)(lmap.model, lmap.frozen, points)[-1])
    u = rng.normal(size=(MAX_DIRECTIONS, len(g_y)))
    by_rows = np.einsum("rtd,td->r", lmap.T @ u, y) + u @ np.asarray(lmap.bias)
    return max(difference(3 * g_y - 2 * g_z, g_combined), difference(by_rows, u @ g_y))


LINES = (
    precision_line,
    batch_line,
    linearized_line,
    residual_line,
    wide_residual_line,
    corrupted_line,
    affine_line,
)
"""The checks, in order; each takes a model in float32 that is not linearized, and prompts of one length."""
