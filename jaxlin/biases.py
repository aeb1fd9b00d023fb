"""The additive biases of a model, apart from its other parameters."""

from typing import TypeVar

import jax

M = TypeVar("M")


def has_biases(model: object) -> bool:
    """Whether `model` has a parameter named ``bias``."""
    return any(map(_is_bias, (path for path, _ in jax.tree_util.tree_leaves_with_path(model))))


def without_biases(model: M) -> M:
    """`model` with nothing added anywhere: held, it is linear where the whole model is affine."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: None if _is_bias(path) else leaf, model)


def _is_bias(path: tuple[object, ...]) -> bool:
    return any(getattr(key, "name", None) == "bias" for key in path)
