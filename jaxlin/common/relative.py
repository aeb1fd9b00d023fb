"""How far something is missed, relative to its size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def relative(missed: Any, size: Any) -> Any:
    """`missed / size`; 0 where nothing is missed, even of nothing, and infinite where there was nothing to miss."""
    if isinstance(missed, jax.Array) or isinstance(size, jax.Array):
        return missed / jnp.where(missed == 0, 1, size)
    with np.errstate(divide="ignore"):
        return np.asarray(missed) / np.where(np.asarray(missed) == 0, 1, size)
