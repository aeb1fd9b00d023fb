r"""The maps from every layer to the output, from one backward pass."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.backward import pull_back, stream_direction
from jaxlin.linearize.frozen import FrozenFactors, check_frozen
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sites import checked_kinds, position_in


def sweep(
    model: Decoder,
    frozen: FrozenFactors,
    u: Float[Array, "*b d"],
    *,
    kinds: tuple[str, ...] = ("resid_pre",),
    position: int = -1,
) -> dict[str, Float[Array, "*b l t d"]]:
    r"""$J_l^\top u$ for the map $J_l$ from each layer's site to the output at `position`, after the final norm.

    A probe, a zero, is added at every site; the derivative with respect to it is the map from there. Probes ride the
    layer scan, so that one backward pass yields the rows of all layers.

    Args:
        model: the decoder.
        frozen: what is held, from `jaxlin.freeze`.
        u: directions of the output.
        kinds: the kinds of sites, of ``resid_pre``, ``attn_out``, ``resid_mid``, ``mlp_out`` and ``resid_post``.
        position: the position of the output.

    Returns:
        For each kind the rows, stacked over layers.

    Raises:
        SiteError: a kind that the model does not have, or no such position.
        JaxlinError: no frozen factors, or directions of another width.
    """
    check_frozen(frozen)
    kinds, at = checked_kinds(kinds, model.sites), position_in(frozen.tokens, position)
    d = model.config.hidden_size
    if u.shape[-1:] != (d,):
        raise JaxlinError(f"Sweep: expected directions of shape (..., {d}); found {u.shape}.")
    rows = _sweep(model, frozen, u.reshape(math.prod(u.shape[:-1]), d), at, kinds)
    return {kind: jnp.moveaxis(row, 1, 0).reshape(*u.shape[:-1], *row[:, 0].shape) for kind, row in rows.items()}


def layer_maps(
    model: Decoder,
    frozen: FrozenFactors,
    *,
    kinds: tuple[str, ...] = ("resid_pre",),
    position: int = -1,
    block: int | None = None,
) -> dict[str, Float[Array, "l d t e"]]:
    r"""The dense maps $J_l$ from each layer's site to the output at `position`, after the final norm.

    All layers' rows come from one backward pass: see `sweep`.

    Args:
        model: the decoder.
        frozen: what is held, from `jaxlin.freeze`.
        kinds: the kinds of sites.
        position: the position of the output.
        block: rows computed together; all of them unless given.

    Returns:
        For each kind the maps, stacked over layers: as many numbers as that many Jacobians.

    Raises:
        SiteError: a kind that the model does not have, or no such position.
        JaxlinError: no frozen factors, or a block without rows.
    """
    check_frozen(frozen)
    d = model.config.hidden_size
    count, kinds = d if block is None else block, checked_kinds(kinds, model.sites)
    at = position_in(frozen.tokens, position)
    if count < 1:
        raise JaxlinError(f"Block: expected at least 1 row; found {block}.")
    parts = []
    for start in range(0, d, count):
        # One shape for all blocks: past the end the rows of the identity are zero.
        u = jax.nn.one_hot(jnp.arange(start, start + count), d, dtype=model.dtype)
        rows = _sweep(model, frozen, u, at, kinds)
        parts.append({kind: row[:, : d - start] for kind, row in rows.items()})
    if len(parts) == 1:  # To put one part together would copy it, and the maps may be most of what memory holds.
        return parts[0]
    return {kind: jnp.concatenate([part[kind] for part in parts], axis=1) for kind in kinds}


@functools.partial(jax.jit, static_argnames="kinds")
def _sweep(
    model: Decoder, frozen: FrozenFactors, u: Float[Array, "b d"], position: Array, kinds: tuple[str, ...]
) -> dict[str, Float[Array, "l b t d"]]:
    direction = stream_direction(model, frozen, u, position)
    # Each layer's rows are laid out as the result is while the pass reaches them, not all of them after it.
    shape = (model.config.num_hidden_layers, len(u), frozen.tokens, u.shape[1])
    rows = {kind: jax.ShapeDtypeStruct(shape, u.dtype) for kind in kinds}

    def probes(rows: dict[str, Array]) -> dict[str, Array]:
        return {kind: jnp.moveaxis(row, 0, 1) for kind, row in rows.items()}

    return pull_back(model, frozen, direction, rows, probes=probes).added
