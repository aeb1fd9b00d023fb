"""The additive biases of a model, apart from its other parameters."""

from typing import TypeVar

import jax

M = TypeVar("M")


def has_biases(model: object) -> bool:
    """Whether `model` has a parameter named ``bias``."""
    return any(map(_is_bias, (path for path, _ in jax.tree_util.tree_leaves_with_path(model))))


def without_biases(model: M) -> M:
    """`model` without its additive biases: with them the frozen model is affine, without them linear."""
    return jax.tree_util.tree_map_with_path(lambda path, array: None if _is_bias(path) else array, model)


def biases_of(model: M) -> M:
    """The additive biases of `model` alone: every other parameter is empty."""
    return jax.tree_util.tree_map_with_path(lambda path, array: array if _is_bias(path) else None, model)


def with_biases(bare: M, biases: M) -> M:
    """The model of which `bare` is `without_biases` and `biases` is `biases_of`."""
    return jax.tree.map(lambda a, bias: a if bias is None else bias, bare, biases, is_leaf=lambda a: a is None)


def _is_bias(path: tuple[object, ...]) -> bool:
    return any(getattr(key, "name", None) == "bias" for key in path)
