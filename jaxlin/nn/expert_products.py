r"""Products of tokens with the matrices of their experts, which are indexed in the stack of all layers and experts.

Both products are linear in what passes through them, and each is the transpose of the other in shape: a token goes to
the hidden features of each of its $k$ experts, and those of all $k$ come back to a token.

The loops run over blocks. A block has the rows of one expert, so that its matrix is read, and unpacked if it is packed,
once. Where many vectors pass each token, as the rows of a map do, a block is one token: its vectors alone make a wide
product, and nothing is computed that is not needed. Where few do, as in a forward pass over a long prompt, the tokens
of a group are sorted by expert, and a block has several of them.

No index is negative, which indexing and division by their operators would allow for: that is as many operations again.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxlin.nn.blockwise import in_blocks
from jaxlin.nn.layers import product

MANY_VECTORS = 32
"""From so many vectors a token on, a block is one token."""

MAX_GROUP = 512
"""The most tokens that are sorted together: the rows of a group are in memory twice, and a matrix is read once a group
for each of its blocks."""


class Blocks(NamedTuple):
    """Which rows are multiplied with which expert, in the order of the loops; ``g`` groups, of ``n`` blocks each.

    Attributes:
        expert: the expert of each block, ``[g, n]``.
        choices: the rows of each block, ``[g, n, r]``: row ``k t + i`` is the ``i``-th expert of token ``t`` of the
            group; ``c k`` where a block of ``r`` rows is not full.
        tokens: the token of each row of each block, ``[g, n, r]``; ``c`` where a block is not full.
        places: where the product of each row is, counted over the rows of all blocks, ``[g, c, k]``.
    """

    expert: Int[Array, "g n"]
    choices: Int[Array, "g n r"]
    tokens: Int[Array, "g n r"]
    places: Int[Array, "g c k"]

    @property
    def one_token(self) -> bool:
        """Whether each group is one token, whose experts are the blocks."""
        return self.choices.shape[-1] == 1


def blocks_of(experts: Int[Array, "t k"], count: int, vectors: int) -> Blocks:
    """The blocks in which the products of tokens with their `experts` are computed.

    Args:
        experts: the experts of each token.
        count: the number of all experts.
        vectors: how many vectors pass each token.
    """
    tokens, k = experts.shape
    group, rows = _sizes(tokens, k, count, vectors)
    # The tokens that fill the last group have no expert, so that they are in no block.
    grouped = in_blocks(experts, group, count)
    if rows == 1:
        choices = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[None, :, None], (tokens, k, 1))
        return Blocks(grouped[:, 0], choices, jnp.zeros_like(choices), choices.reshape(tokens, 1, k))
    return jax.vmap(functools.partial(_sorted_blocks, count=count, rows=rows))(grouped)


def _sizes(tokens: int, k: int, count: int, vectors: int) -> tuple[int, int]:
    """The number of tokens in a group, and of rows in a block.

    A block has half of the rows that an expert has on average, so that few rows of the blocks are empty.
    """
    groups = -(-tokens // MAX_GROUP)
    group = -(-tokens // groups)
    average = group * k // (2 * count)
    if vectors >= MANY_VECTORS or average < 2:
        return 1, 1
    return group, 2 ** (average.bit_length() - 1)


def _sorted_blocks(experts: Int[Array, "c k"], *, count: int, rows: int) -> Blocks:
    """The blocks of one group: the rows of each expert, in as many blocks as they fill."""
    flat, k = experts.reshape(-1), experts.shape[-1]
    total = flat.shape[0]
    blocks = total // rows + count  # at most one block of each expert is not full
    order = jnp.argsort(flat).astype(jnp.int32)
    expert = _take(flat, order, "clip")
    sizes = jnp.zeros(count, jnp.int32).at[flat].add(1, mode="drop", wrap_negative_indices=False)
    filled = _quotient(sizes + (rows - 1), rows)
    # In units of rows, where each expert begins at a block of its own.
    start = (jnp.cumsum(filled) - filled) * rows - (jnp.cumsum(sizes) - sizes)
    places = jnp.arange(total, dtype=jnp.int32) + _take(start, expert, "clip")
    places = jnp.where(expert < count, places, blocks * rows)
    choices = _placed(order, places, jnp.full(blocks * rows, total, jnp.int32)).reshape(blocks, rows)
    return Blocks(
        _placed(expert, _quotient(places, rows), jnp.zeros(blocks, jnp.int32)),
        choices,
        _quotient(choices, k),
        _placed(places, order, jnp.zeros(total, jnp.int32)).reshape(experts.shape),
    )


def to_hidden(x: Float[Array, "t *b d"], weights: Any, blocks: Blocks) -> Float[Array, "t *b k f"]:
    r"""$W_e x_t$ for each expert $e$ of token $t$.

    Args:
        x: the tokens.
        weights: ``weights[e]`` is the matrix of an expert, ``[f, d]``.
        blocks: see `blocks_of`.
    """
    k, one_token = blocks.places.shape[-1], blocks.one_token

    def group_products(group: tuple[Array, Blocks]) -> Array:
        tokens, blocks = group

        # Without the checkpoint the matrices of all blocks would be stored for the transpose.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def block_product(_: None, block: tuple[Array, Array]) -> tuple[None, Array]:
            expert, of_rows = block
            rows = tokens if one_token else _take(tokens, of_rows)
            return None, product("...i,oi->...o", rows, weights[expert].astype(rows.dtype))

        _, hidden = jax.lax.scan(block_product, None, (blocks.expert, blocks.tokens))
        hidden = hidden.reshape(-1, *hidden.shape[2:])
        hidden = hidden if one_token else _take(hidden, blocks.places.reshape(-1))
        return jnp.moveaxis(hidden.reshape(-1, k, *hidden.shape[1:]), 1, -2)

    return _ungrouped(jax.lax.map(group_products, (_grouped(x, blocks), blocks)), x.shape[0])


def from_hidden(h: Float[Array, "t *b k f"], weights: Any, blocks: Blocks) -> Float[Array, "t *b d"]:
    r"""$\sum_i W_{e_i} h_{ti}$ over the experts $e_i$ of token $t$.

    Args:
        h: the hidden features of each expert of each token.
        weights: ``weights[e]`` is the matrix of an expert, ``[d, f]``.
        blocks: see `blocks_of`.
    """
    one_token = blocks.one_token
    features = jax.eval_shape(lambda: weights[0]).shape[0]

    def group_products(group: tuple[Array, Blocks]) -> Array:
        hidden, blocks = group
        zeros = jnp.zeros((*hidden.shape[:-2], features), hidden.dtype)
        hidden = jnp.moveaxis(hidden, -2, 1)
        rows = hidden.reshape(-1, *hidden.shape[2:])
        rows = rows if one_token else _take(rows, blocks.choices.reshape(-1))
        rows = rows.reshape(*blocks.choices.shape, *rows.shape[1:])

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def add_block(y: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
            expert, of_rows, rows = block
            added = product("...i,oi->...o", rows, weights[expert].astype(rows.dtype))
            if one_token:
                return y + added, None
            return y.at[of_rows].add(added, mode="drop", wrap_negative_indices=False), None

        return jax.lax.scan(add_block, zeros, (blocks.expert, blocks.tokens, rows))[0]

    return _ungrouped(jax.lax.map(group_products, (_grouped(h, blocks), blocks)), h.shape[0])


def _grouped(x: Float[Array, "t ..."], blocks: Blocks) -> Float[Array, "g c ..."]:
    return in_blocks(x, blocks.places.shape[1])


def _ungrouped(x: Float[Array, "g c ..."], tokens: int) -> Float[Array, "t ..."]:
    return x.reshape(math.prod(x.shape[:2]), *x.shape[2:])[:tokens]


def _take(x: Shaped[Array, "n ..."], index: Int[Array, " m"], mode: str = "fill") -> Shaped[Array, "m ..."]:
    """The rows of `x`; zeros where an index is past the last, or with the mode ``"clip"`` the last."""
    return x.at[index].get(mode=mode, fill_value=0 if mode == "fill" else None, wrap_negative_indices=False)


def _quotient(x: Int[Array, "..."], divisor: int) -> Int[Array, "..."]:
    """`x` over `divisor`, rounded down."""
    return jax.lax.div(x, jnp.asarray(divisor, x.dtype))


def _placed(x: Int[Array, " m"], index: Int[Array, " m"], into: Int[Array, " n"]) -> Int[Array, " n"]:
    """`into` with the numbers `x`, but for those whose index is past the last."""
    return into.at[index].set(x, mode="drop", wrap_negative_indices=False)
