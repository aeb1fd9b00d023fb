"""The floor: the least time for the products and bytes of a method, at the measured rates of this device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import seconds
from jaxlin.linearize.operator import LocalMap
from jaxlin.models.qwen_hybrid import QwenHybridConfig
from jaxlin.nn.config import Config
from jaxlin.porting.hybrid_fields import LINEAR

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
    d, total = config.hidden_size, 0
    for layer in range(config.num_hidden_layers - depth, config.num_hidden_layers):
        mixer, is_top = _mixer(config, layer), layer == config.num_hidden_layers - 1
        after = mixer.heads * d + 2 * d * config.neurons
        total += tokens * d * mixer.values + (1 if is_top else tokens) * after + mixer.pattern(tokens, is_top)
    return 2 * rows * total


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
    d, total = config.hidden_size, 0
    for layer in range(config.num_hidden_layers):
        mixer = _mixer(config, layer)
        weights = mixer.inputs + mixer.values + mixer.heads + 3 * config.neurons
        total += tokens * d * weights + 2 * mixer.pattern(tokens)
    return 2 * total


@dataclass(frozen=True)
class _Mixer:
    """The features of the part of a block that mixes tokens.

    Attributes:
        heads: those of all heads together, which the output projection reads.
        values: those of all values.
        inputs: those of what the pattern, and a gate of the heads, are computed from.
        state: those of a state beside each of `heads`, for a delta rule; None for attention.
    """

    heads: int
    values: int
    inputs: int
    state: int | None = None

    def pattern(self, tokens: int, is_top: bool = False) -> int:
        """Multiplications of a pattern with values: at the last position alone, or at all; through a state if less."""
        seen = tokens if is_top else tokens * (tokens + 1) // 2
        return self.heads * (seen if self.state is None else min(seen, 2 * self.state * tokens))


def _mixer(config: Config, layer: int) -> _Mixer:
    """Attention, or the delta rule of a hybrid."""
    heads, values = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    sizes = getattr(config, "delta_net", None)
    if sizes is None or not config.layer_kinds[layer].startswith(LINEAR):
        is_gated = isinstance(config, QwenHybridConfig)
        return _Mixer(heads, values, (2 if is_gated else 1) * heads + values)
    heads, keys = sizes.value_heads * sizes.value_dim, sizes.key_heads * sizes.key_dim
    return _Mixer(heads, heads, 2 * keys + heads + 2 * sizes.value_heads, sizes.key_dim)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree."""
    return sum(array.nbytes for array in jax.tree.leaves(tree))
