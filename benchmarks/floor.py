"""The floor: the least time for the products and bytes of a method, at the measured rates of this device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import seconds
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.config import Config

SIDE, COPIED = 4096, 256 * 2**20
"""The side of the large product and the bytes of the large copy on a CPU. Elsewhere `ACCELERATED`: these would be too
short to time."""
ACCELERATED = 8192, 4 * 2**30


def large() -> tuple[int, int]:
    """The side of a large product and the bytes of a large copy on the present device."""
    return (SIDE, COPIED) if jax.default_backend() == "cpu" else ACCELERATED


@dataclass(frozen=True)
class Floor:
    """The least time of a method.

    Attributes:
        products: floating-point operations of its matrix products.
        moved: bytes that it must read and write.
        rate: operations a second of a large product.
        bandwidth: bytes a second, read and written, of a large copy.
    """

    products: float
    moved: float
    rate: float
    bandwidth: float

    @property
    def seconds(self) -> float:
        """The longer of the two times."""
        return max(self.products / self.rate, self.moved / self.bandwidth)


def square_product(side: int, algorithm: str = "highest") -> Callable[[], Any]:
    """A product of a large random matrix with itself, multiplied as `jaxlin.nn.precision.matmul_precision` says."""
    square = jax.random.normal(jax.random.key(0), (side, side))
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=algorithm))
    multiply(square).block_until_ready()
    return lambda: multiply(square)


def bandwidth(runs: int = 5) -> float:
    """Bytes a second, read and written, of a copy of a large array: that of the fastest run."""
    _, size = large()
    array = jnp.ones(size // 4)
    copy = jax.jit(lambda a: a + 1)
    copy(array).block_until_ready()
    return 2 * size / min(seconds(lambda: copy(array)) for _ in range(runs))


def row_products(config: Config, rows: int, tokens: int, layers: int | None = None) -> int:
    """Operations of `rows` rows of J at the last position, through the top `layers` blocks (all unless given).

    The transposes of the value, output, up and down projections and of the causal attention patterns at every
    position, those of the top block at the last alone.
    """
    depth = config.num_hidden_layers if layers is None else layers
    if depth == 0:
        return 0
    d, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    values, after = d * config.num_key_value_heads * config.head_dim, heads * d + 2 * d * config.neurons
    inner = tokens * (values + after) + heads * tokens * (tokens + 1) // 2
    top = tokens * values + after + heads * tokens
    return 2 * rows * ((depth - 1) * inner + top)


def folded_products(config: Config, rows: int, tokens: int, layers: int | None = None) -> int:
    """As `row_products`, with each MLP multiplied into one matrix at each position by `jaxlin.nn.folding.fold`."""
    depth = config.num_hidden_layers if layers is None else layers
    d, f = config.hidden_size, config.neurons
    saved = max(0, 2 * rows * d * f - d * d * f - rows * d * d)
    return row_products(config, rows, tokens, layers) - (2 * saved * (tokens * (depth - 1) + 1) if depth else 0)


def map_products(lmap: LocalMap, layers: int | None = None) -> int:
    """Operations of `LocalMap.jacobian`, which folds MLPs where it takes all rows together."""
    rows, tokens, _ = lmap.shape
    count = folded_products if lmap.default_block == rows else row_products
    return count(lmap.model.config, rows, tokens, layers)


def forward_products(config: Config, tokens: int) -> int:
    """Operations of a forward pass at every position, to the final norm."""
    d, k = config.hidden_size, config.head_dim
    weights = 2 * d * k * (config.num_attention_heads + config.num_key_value_heads) + 3 * d * config.neurons
    patterns = 2 * config.num_attention_heads * k * tokens * (tokens + 1) // 2
    return 2 * config.num_hidden_layers * (tokens * weights + patterns)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree."""
    return sum(array.nbytes for array in jax.tree.leaves(tree))
