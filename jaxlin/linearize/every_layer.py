"""The local linear maps from every layer to the output, all from one backward pass."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.backward import pull_back, stream_direction
from jaxlin.linearize.frozen import FrozenFactors, check_frozen
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sites import checked_kinds, position_in


@checked
def sweep(
    model: Decoder,
    frozen: FrozenFactors,
    u: Float[Array, "*b d"],
    *,
    kinds: tuple[str, ...] = ("resid_pre",),
    position: int = -1,
) -> dict[str, Float[Array, "*b l t d"]]:
    r"""$J_l^\top u$ for the map $J_l$ from each layer's site to the output at `position`, after the final norm.

    A probe, which is zero, is added at every site; the derivative with respect to it is the map from there. The scan
    over layers carries the probes, so that one backward pass gives the rows of all layers.

    Args:
        model: the decoder.
        frozen: its frozen factors, from `jaxlin.freeze`.
        u: directions of the output.
        kinds: the kinds of sites, of ``resid_pre``, ``attn_out``, ``resid_mid``, ``mlp_out`` and ``resid_post``.
        position: the position of the output.

    Returns:
        For each kind, the rows stacked over layers.

    Raises:
        SiteError: the model has no such kind of site, or there is no such position.
        JaxlinError: `frozen` is not a `FrozenFactors`, or the directions have another width than the output.
    """
    check_frozen(frozen)
    kinds, index = checked_kinds(kinds, model.sites), position_in(frozen.tokens, position)
    d = model.config.hidden_size
    if u.shape[-1:] != (d,):
        raise JaxlinError(f"Sweep: expected directions of shape (..., {d}); found {u.shape}.")
    rows = _sweep(model, frozen, u.reshape(math.prod(u.shape[:-1]), d), index, kinds)
    return {kind: jnp.moveaxis(row, 1, 0).reshape(*u.shape[:-1], *row[:, 0].shape) for kind, row in rows.items()}


@checked
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
        frozen: its frozen factors, from `jaxlin.freeze`.
        kinds: the kinds of sites.
        position: the position of the output.
        block: how many rows to compute together; all of them if None.

    Returns:
        For each kind, the maps stacked over layers, which take the memory of one Jacobian a layer.

    Raises:
        SiteError: the model has no such kind of site, or there is no such position.
        JaxlinError: `frozen` is not a `FrozenFactors`, or `block` is less than 1.
    """
    check_frozen(frozen)
    d = model.config.hidden_size
    count, kinds = d if block is None else block, checked_kinds(kinds, model.sites)
    index = position_in(frozen.tokens, position)
    if count < 1:
        raise JaxlinError(f"Block: expected at least 1 row; found {block}.")
    parts = []
    for start in range(0, d, count):
        # All blocks have one shape, so that they are compiled once: rows past the end of the identity are zero.
        u = jax.nn.one_hot(jnp.arange(start, start + count), d, dtype=model.dtype)
        rows = _sweep(model, frozen, u, index, kinds)
        parts.append({kind: row[:, : d - start] for kind, row in rows.items()})
    if len(parts) == 1:  # jnp.concatenate would copy the maps, which may fill most of the memory.
        return parts[0]
    return {kind: jnp.concatenate([part[kind] for part in parts], axis=1) for kind in kinds}


@functools.partial(jax.jit, static_argnames="kinds")
def _sweep(
    model: Decoder, frozen: FrozenFactors, u: Float[Array, "b d"], position: Array, kinds: tuple[str, ...]
) -> dict[str, Float[Array, "l b t d"]]:
    direction = stream_direction(model, frozen, u, position)
    # Each layer's rows are transposed within the scan: transposed after it, all of them would be in memory twice.
    shape = (model.config.num_hidden_layers, len(u), frozen.tokens, u.shape[1])
    rows = {kind: jax.ShapeDtypeStruct(shape, u.dtype) for kind in kinds}

    def probes(rows: dict[str, Array]) -> dict[str, Array]:
        return {kind: jnp.moveaxis(row, 0, 1) for kind, row in rows.items()}

    return pull_back(model, frozen, direction, rows, probes=probes).added
