"""Reading a lens: the tokens with the largest logits at each layer and position of a prompt."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin import plots
from jaxlin.common.annotations import is_integer
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.lens.jacobian_lens import JacobianLens, check_lens, layer_ranges
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings, PromptError
from jaxlin.nn.sites import position_in
from jaxlin.results import Result, html, traced_to


@dataclass(frozen=True, repr=False, eq=False)
class LensReading(Result):
    """The tokens with the largest logits at each layer and position, and the ranks of some tokens.

    Attributes:
        layers: the layers, counted from 0, after whose block the stream is read. The last is always among them, and is
            read without a matrix if the lens has none for it: these are the model's own logits.
        positions: the positions, counted from the first token.
        ids: the tokens with the largest logits, the largest first, ``[n, p, k]``.
        logits: the logits of `ids`, after the softcap if the model has one, ``[n, p, k]``.
        ranks: for each of the `tokens` passed to `read`, how many tokens have a larger logit, ``[n, p, m]``.
        probabilities: the softmax over the whole vocabulary, at `ids`, ``[n, p, k]``.
    """

    AXES: ClassVar = {
        **dict.fromkeys(("ids", "logits", "probabilities"), ("layer", "position", "place")),
        "ranks": ("layer", "position", "asked"),
    }
    LABELS: ClassVar = {"layer": ("layer", "layers"), "position": ("position", "positions")}
    COLUMNS: ClassVar = {"ids": "id", "logits": "logit", "probabilities": "probability", "ranks": "rank"}
    IDS: ClassVar = ("ids",)

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    ids: Int[np.ndarray, "n p k"]
    logits: Float[np.ndarray, "n p k"]
    ranks: Int[np.ndarray, "n p m"]
    probabilities: Float[np.ndarray, "n p k"]

    def __repr__(self) -> str:
        layers, (_, positions, k) = layer_ranges(self.layers), self.ids.shape
        return (
            f"LensReading(layers={layers}, {positions} positions, {k} tokens at each, ranks of {self.ranks.shape[2]})"
        )

    @property
    def words(self) -> list[list[list[str]]]:
        """The tokens as people read them, ``[n][p][k]``; their ids where the tokenizer is not known."""
        return [[[self._word(token) for token in cell] for cell in row] for row in self.ids.tolist()]

    def tables(self) -> list[dict[str, Any]]:
        """One table of the tokens, with the ranks of the tokens that were asked for as columns of their own."""
        table, k = super().tables()[0], self.ids.shape[2]
        ids = [] if self.provenance is None else self.provenance.settings.get("tokens", [])
        for index in range(self.ranks.shape[2]):
            name = self._word(ids[index]) if index < len(ids) else str(index)
            table[f"rank of {name}"] = np.repeat(self.ranks[:, :, index].ravel(), k)
        return [table]

    def _draw(self, ax: Any) -> None:
        """A grid of the likeliest tokens, layer by token of the prompt, on the logits; the last layer is on top."""
        words = [[cell[0] for cell in row] for row in self.words][::-1]
        columns = self._labels("position", len(self.positions))
        plots.word_grid(ax, words, self.logits[::-1, :, 0], [str(layer) for layer in self.layers[::-1]], columns)
        plots.write(ax, title="The likeliest token after each layer", ylabel="layer")

    def _repr_html_(self) -> str:
        """A grid of the likeliest tokens; the others are shown when the pointer rests on a cell."""
        rows = [str(layer) for layer in self.layers[::-1]]
        columns = self._labels("position", len(self.positions))
        return html.heading(self) + html.word_grid(self.words[::-1], self.logits[::-1], rows, columns)


@checked
def read(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    lens: JacobianLens | None = None,
    *,
    k: int = 8,
    tokens: int | Sequence[int] = (),
    positions: int | Sequence[int] | None = None,
) -> LensReading:
    r"""The tokens with the largest $\operatorname{unembed}(\operatorname{norm}(J_l\,h_{l,t}))$, by layer and position.

    It takes one forward pass, and one product with the unembedding for each layer.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        lens: a lens of this model; the logit lens at every layer by default.
        k: the number of tokens at each layer and position.
        tokens: ids of tokens whose ranks are returned.
        positions: the positions to read; negative ones count from the last token. All by default.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: no such position.
        JaxlinError: a lens of another model, `k` not in 1..vocabulary, or an id that no token has.
    """
    prompt, x = x, model.check_embeddings(x)
    depth, vocab = model.config.num_hidden_layers, model.config.vocab_size
    if not is_integer(k) or not 1 <= k <= vocab:
        raise JaxlinError(f"Read: expected a number of tokens in 1..{vocab}; found {quoted(k)}.")
    ranked = _as_list(tokens)
    if invalid := [token for token in ranked if not is_integer(token) or not 0 <= token < vocab]:
        raise JaxlinError(f"Read: expected token ids in 0..{vocab - 1}; found {quoted(invalid[0])}.")
    requested = range(len(x)) if positions is None else _as_list(positions)
    indices = tuple(position_in(len(x), position) for position in requested)
    if lens is None:
        layers, maps = tuple(range(depth - 1)), None
    else:
        check_lens(model, lens)
        layers, maps = lens.source_layers, jnp.asarray(lens.maps, x.dtype)
    last = () if depth - 1 in layers else (depth - 1,)
    arrays = (np.asarray(each, np.int32).reshape(len(each)) for each in (indices, ranked))
    fields = _read(model, x, maps, *arrays, layers=layers + last, k=int(k))
    reading = LensReading(layers + last, indices, *jax.device_get(fields))
    return traced_to(reading, model, prompt, tokens=ranked, lens="logit lens" if lens is None else lens.estimator)


def _as_list(value: Any) -> list[Any]:
    return [value] if np.ndim(value) == 0 else list(value)


@checked
def logits(model: Decoder, h: Float[Array, "*b d"]) -> Float[Array, "*b vocab"]:
    """The logits of streams before the final norm, of any layer or from `JacobianLens.transport`.

    Raises:
        PromptError: vectors of another width.
    """
    if jnp.shape(h)[-1:] != (model.config.hidden_size,):
        raise PromptError(f"Stream: expected shape (..., {model.config.hidden_size}); found {jnp.shape(h)}.")
    return model.unembed(model.norm(h, Context()))


@functools.partial(jax.jit, static_argnames=("layers", "k"))
def _read(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    maps: Float[Array, "l d e"] | None,
    positions: Int[Array, " p"],
    tokens: Int[Array, " m"],
    *,
    layers: tuple[int, ...],
    k: int,
) -> tuple[Int[Array, "n p k"], Float[Array, "n p k"], Int[Array, "n p m"], Float[Array, "n p k"]]:
    _, streams = model.scan(x, lambda _: Context(), collect=lambda ctx: ctx.hooks.values["resid_post"][positions])
    h = streams[np.asarray(layers)]
    if maps is not None:
        transported = jnp.einsum("lde,lpe->lpd", maps, h[: len(maps)], precision=HIGHEST)
        h = jnp.concatenate([transported, h[len(maps) :]])

    def read_layer(h: Float[Array, "p d"]) -> tuple[Any, Any, Any, Any]:
        scores = logits(model, h)
        largest, ids = jax.lax.top_k(scores, k)
        is_larger = scores[:, None, :] > scores[:, tokens][:, :, None]
        total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        return ids, largest, jnp.sum(is_larger, axis=-1), jnp.exp(largest - total)

    # One layer at a time, because each position has as many logits as the vocabulary has tokens.
    return jax.lax.map(read_layer, h)
