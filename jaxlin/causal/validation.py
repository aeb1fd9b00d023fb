r"""Tests of the map against the ordinary model: removed directions, and other inputs."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin import plots
from jaxlin.causal.effects import BATCH_SIZE
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.arrays import relative_error
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.linearize.linalg.triplets import SVD
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.targets import Target, Words, read_target, resolve_target
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.prompt import Embeddings, array_of, bound_like
from jaxlin.nn.sites import position_in
from jaxlin.results import Result, traced_to
from jaxlin.tokenizer import Tokenizer

Side = Literal["right", "left"]


@dataclass(frozen=True, eq=False, repr=False)
class Removal(Result):
    r"""The effect of removing some singular directions, beside that of random vectors of the same norm.

    Attributes:
        size: the norm of the vector that was removed.
        kl: $D_\text{KL}(p \,\Vert\, p')$ in nats, for the predictions $p$ before and $p'$ after.
        change: how much the target rises.
        random_kl: `kl` of each random removal, ``[n]``.
        random_change: `change` of each random removal, ``[n]``.
    """

    AXES: ClassVar = dict.fromkeys(("random_kl", "random_change"), ("draw",))

    size: float
    kl: float
    change: float
    random_kl: Float[np.ndarray, " n"]
    random_change: Float[np.ndarray, " n"]

    def _draw(self, ax: Any) -> None:
        """The divergence of the removal, above those of random removals."""
        draws = [f"random {draw}" for draw in range(len(self.random_kl))]
        plots.bars(ax, np.append(self.kl, self.random_kl), ["removed", *draws])
        plots.write(ax, title="Removal of singular directions", xlabel="KL divergence of the prediction, nats")


@dataclass(frozen=True, eq=False, repr=False)
class Validity(Result):
    r"""How well the map at $x$ predicts the output at $x'$, in which one token is replaced.

    Attributes:
        distance: $\lVert x' - x \rVert$ for each token and each substitute, ``[p, n]``.
        error: $\lVert J x' + b - f(x') \rVert / \lVert f(x') \rVert$, ``[p, n]``.
        unchanged: $\lVert f(x) - f(x') \rVert / \lVert f(x') \rVert$, ``[p, n]``: the error of predicting no change.
            The map is informative at $x'$ only where `error` is smaller.
    """

    AXES: ClassVar = dict.fromkeys(("distance", "error", "unchanged"), ("position", "substitute"))

    distance: Float[np.ndarray, "p n"]
    error: Float[np.ndarray, "p n"]
    unchanged: Float[np.ndarray, "p n"]

    def _draw(self, ax: Any) -> None:
        """The mean errors of the map and of predicting no change, over the text."""
        series = {"error of the map": self.error.mean(1), "of predicting no change": self.unchanged.mean(1)}
        plots.token_bars(ax, series, self._labels("position", len(self.error)))
        plots.write(ax, title="A token is replaced: mean over substitutes", ylabel="relative error")


@checked
def removal(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    triplets: SVD,
    target: Target | Words,
    *,
    side: Side = "right",
    k: int | None = None,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    samples: int = 16,
    seed: int = 0,
) -> Removal:
    r"""Remove the leading singular directions, and for comparison random vectors of the same norm.

    On the right, the component along $v_1 \dots v_k$ is subtracted from the embeddings, and the ordinary model runs
    again. On the left, the component along $u_1 \dots u_k$ is subtracted from the output $f(x)$, before the
    unembedding. A random removal subtracts a random vector of the norm of that component.

    Args:
        model: any decoder.
        x: the input embeddings.
        triplets: the singular triplets of the map at `x` from the embeddings to the output at `position`, as
            `LocalMap.svd` gives them.
        target: the target whose change is measured, as in `jaxlin.attribute`.
        side: which singular vectors are removed.
        k: how many of the triplets are removed; all by default.
        position: where the prediction is read; negative counts from the last token.
        tokenizer: the model's tokenizer, if the target is words.
        samples: the number of random removals.
        seed: the seed of the random vectors.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: an invalid target, no such side, or more triplets than there are.
        SiteError: no such position.
        TokenizerError: a word that is not one token.
    """
    check_not_traced("Causal check", model, x)
    prompt, x = x, model.check_embeddings(x)
    count = len(triplets.s) if k is None else k
    if not 1 <= count <= len(triplets.s):
        raise JaxlinError(f"Removal: expected k in 1..{len(triplets.s)}, the number of triplets; found {k}.")
    if side not in ("right", "left"):
        raise JaxlinError(f'Removal: expected the side "right" or "left"; found {quoted(side)}.')
    if samples < 0:
        raise JaxlinError(f"Removal: expected 0 random removals or more; found {samples}.")
    index = position_in(x.shape[0], position)
    checked = resolve_target(model, target, x, index, tokenizer)
    if side == "right":
        point, directions = array_of(x), jnp.asarray(triplets.v[:count], x.dtype)
    else:
        point = jax.jit(lambda model, x: model(x))(model, x)[index]
        directions = jnp.asarray(triplets.u[:, :count].T, x.dtype)
    if directions.shape[1:] != point.shape:
        raise JaxlinError(
            f"Removal: expected vectors of shape {point.shape}, as the prompt's; found {directions.shape[1:]}."
        )
    coordinates = jnp.tensordot(directions, point, point.ndim, precision=HIGHEST)
    component = jnp.tensordot(coordinates, directions, 1, precision=HIGHEST)
    size = jnp.linalg.norm(component)
    noise = jax.random.normal(jax.random.key(seed), (samples, *point.shape), x.dtype)
    norms = jnp.sqrt(jnp.sum(jnp.square(noise), axis=tuple(range(1, noise.ndim)), keepdims=True))
    removed = jnp.concatenate([jnp.zeros_like(component)[None], component[None], noise / norms * size])
    kl, values = (np.asarray(a) for a in _predictions(model, x, point[None] - removed, index, checked, side))
    change = values - values[0]
    result = Removal(float(size), float(kl[1]), float(change[1]), kl[2:], change[2:])
    settings = {"target": checked, "position": position, "side": side, "k": count, "seed": seed}
    return traced_to(result, model, prompt, tokenizer=tokenizer, **settings)


@checked
def validity(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    substitutes: Float[Array, "n d"],
    *,
    position: int = -1,
    fraction: float = 1.0,
) -> Validity:
    r"""Replace each token up to `position` by each substitute, and compare the map at `x` with the model there.

    Args:
        model: any decoder.
        x: the input embeddings.
        substitutes: the embeddings of other tokens, in the order in which `model.embed` gives them.
        position: where the output is read; negative counts from the last token.
        fraction: how far each token is moved towards its substitute: 1 replaces it, less explores the neighbourhood.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        JaxlinError: substitutes of another shape.
        SiteError: no such position.
    """
    check_not_traced("Causal check", model, x, substitutes)
    lmap, width = local_map(model, x, position=position), model.config.hidden_size
    if np.ndim(substitutes) != 2 or substitutes.shape[1] != width or not len(substitutes):
        raise JaxlinError(
            f"Validity: expected substitutes of shape (n, {width}), one or more; found {np.shape(substitutes)}."
        )
    tokens = int(lmap.position) + 1
    arrays = (np.asarray(a).reshape(tokens, -1) for a in _replace_each(lmap, substitutes, fraction, tokens))
    return traced_to(Validity(*arrays), model, x, position=position, fraction=fraction)


@functools.partial(jax.jit, static_argnames="side")
def _predictions(
    model: Decoder, x: Float[Embeddings, "t d"], points: Float[Array, "n *x"], position: Any, target: Array, side: Side
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The divergence from the first point's prediction to that of each point, and the value of `target` at each."""
    outputs = points
    if side == "right":
        outputs = jax.lax.map(lambda point: model(bound_like(x, point))[position], points, batch_size=BATCH_SIZE)
    log_p = jax.nn.log_softmax(model.unembed(outputs), axis=-1)
    kl = jnp.sum(jnp.exp(log_p[:1]) * (log_p[:1] - log_p), axis=-1)
    return kl, jax.vmap(lambda output: read_target(model, output, target, Context()))(outputs)


@functools.partial(jax.jit, static_argnames="tokens")
def _replace_each(
    lmap: LocalMap, substitutes: Float[Array, "n d"], fraction: Any, tokens: int
) -> tuple[Float[Array, " pn"], Float[Array, " pn"], Float[Array, " pn"]]:
    """The fields of `Validity`, flat: for each of the first `tokens` tokens and each substitute."""

    def replace(pair: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        token, substitute = pair
        step = fraction * (lmap.model.moved_embeddings(substitutes[substitute], substitute, token) - lmap.x[token])
        x = array_of(lmap.x).at[token].add(step)
        output, predicted = lmap.model(bound_like(lmap.x, x))[lmap.position], lmap @ x + lmap.bias
        norm = jnp.linalg.norm
        return norm(step), *(relative_error(norm(y - output), norm(output)) for y in (predicted, lmap.output))

    pairs = jnp.divmod(jnp.arange(tokens * substitutes.shape[0]), substitutes.shape[0])
    return jax.lax.map(replace, pairs, batch_size=BATCH_SIZE)
