"""What a lens reads of a prompt: at every layer and position the tokens that the stream is nearest to saying."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.lens.jacobian_lens import JacobianLens, check_lens, layer_ranges
from jaxlin.nn.arguments import check_model
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder, PromptError
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import is_integer, position_in


@dataclass(frozen=True, repr=False, eq=False)
class Reading:
    """The best tokens at each layer and position, and where chosen tokens stand among all.

    Attributes:
        layers: the layers read, counted from 0: the stream after that block. Where no matrix stands for the last, it is
            read as it is: the model's own answer.
        positions: the positions read, counted from the first token.
        ids: the best tokens, the best first, ``[n, p, k]``.
        logits: their logits, after a softcap if the model has one, ``[n, p, k]``.
        ranks: how many tokens have a larger logit than each of the chosen ones, ``[n, p, m]``: 0 is the best.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    ids: Int[np.ndarray, "n p k"]
    logits: Float[np.ndarray, "n p k"]
    ranks: Int[np.ndarray, "n p m"]

    def __repr__(self) -> str:
        layers, (_, positions, k) = layer_ranges(self.layers), self.ids.shape
        return f"Reading(layers={layers}, {positions} positions, {k} tokens at each, ranks of {self.ranks.shape[2]})"


def read(
    model: Decoder,
    x: Float[Array, "t d"],
    lens: JacobianLens | None = None,
    *,
    k: int = 8,
    tokens: int | Sequence[int] = (),
    positions: int | Sequence[int] | None = None,
) -> Reading:
    r"""The tokens with the largest $\operatorname{unembed}(\operatorname{norm}(J_l\,h_{l,t}))$, by layer and position.

    One forward pass, and one product with the unembedding for each layer.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        lens: of this model; the logit lens, at every layer, unless given.
        k: how many tokens at each layer and position.
        tokens: ids of tokens whose ranks are given.
        positions: where to read; negative ones count from the last token. All unless given.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: no such position.
        JaxlinError: a lens of another model, `k` not in 1..vocabulary, or no token ids.
    """
    check_model(model)
    model.check_embeddings(x)
    depth, vocab = model.config.num_hidden_layers, model.config.vocab_size
    if not is_integer(k) or not 1 <= k <= vocab:
        raise JaxlinError(f"Read: expected a number of tokens in 1..{vocab}; found {quoted(k)}.")
    chosen = _listed(tokens)
    if unknown := [token for token in chosen if not is_integer(token) or not 0 <= token < vocab]:
        raise JaxlinError(f"Read: expected token ids in 0..{vocab - 1}; found {quoted(unknown[0])}.")
    asked = range(len(x)) if positions is None else _listed(positions)
    at = tuple(position_in(len(x), position) for position in asked)
    if lens is None:
        layers, maps = tuple(range(depth - 1)), None
    else:
        check_lens(model, lens)
        layers, maps = lens.source_layers, jnp.asarray(lens.maps, x.dtype)
    last = () if depth - 1 in layers else (depth - 1,)
    where, of = (np.asarray(each, np.int32).reshape(len(each)) for each in (at, chosen))
    found = _read(model, x, maps, where, of, layers=layers + last, k=int(k))
    return Reading(layers + last, at, *jax.device_get(found))


def _listed(given: Any) -> list[Any]:
    return [given] if np.ndim(given) == 0 else list(given)


def logits(model: Decoder, h: Float[Array, "*b d"]) -> Float[Array, "*b vocab"]:
    """The logits of streams before the final norm, of any layer or of `JacobianLens.transport`: norm, then unembedding.

    Raises:
        PromptError: vectors of another width.
    """
    if jnp.shape(h)[-1:] != (model.config.hidden_size,):
        raise PromptError(f"Stream: expected shape (..., {model.config.hidden_size}); found {jnp.shape(h)}.")
    return model.unembed(model.norm(h, Context()))


@functools.partial(jax.jit, static_argnames=("layers", "k"))
def _read(
    model: Decoder,
    x: Float[Array, "t d"],
    maps: Float[Array, "l d e"] | None,
    positions: Int[Array, " p"],
    tokens: Int[Array, " m"],
    *,
    layers: tuple[int, ...],
    k: int,
) -> tuple[Int[Array, "n p k"], Float[Array, "n p k"], Int[Array, "n p m"]]:
    _, streams = model.scan(x, lambda _: Context(), collect=lambda ctx: ctx.hooks.values["resid_post"][positions])
    read = streams[np.asarray(layers)]
    if maps is not None:
        moved = jnp.einsum("lde,lpe->lpd", maps, read[: len(maps)], precision=HIGHEST)
        read = jnp.concatenate([moved, read[len(maps) :]])

    def at(h: Float[Array, "p d"]) -> tuple[Any, Any, Any]:
        found = logits(model, h)
        best, ids = jax.lax.top_k(found, k)
        larger = found[:, None, :] > found[:, tokens][:, :, None]
        return ids, best, jnp.sum(larger, axis=-1)

    # One layer at a time: of each position there are as many logits as tokens.
    return jax.lax.map(at, read)
