r"""Edits by other values: a function of one's own, zero, mean and resample ablation, and the values of another prompt.

Each goes a share $s$ of the way, $h \mapsto h + s\,(h' - h)$, its strength; 1 by default.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.activations.recording import record
from jaxlin.common.annotations import Number
from jaxlin.common.arguments import checked
from jaxlin.common.arrays import Leaf
from jaxlin.common.printable import quoted
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.edits import Edit, SteeringError, check_units, check_where
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.site_names import NamedSite, parse_site
from jaxlin.nn.sites import InnerSite


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Apply(Edit):
    r"""$h \mapsto h + s\,(f(h) - h)$ for a function $f$ of the value at a site: see `apply`.

    Attributes:
        function: $f$, written in JAX.
    """

    function: Callable[[Any], Any] = field(metadata={"static": True})

    def __call__(self, h: Float[Array, "*n"], drive: Float[Array, "t e"]) -> Float[Array, "*n"]:
        """The value moved towards that of the function by the share $s$."""
        return jax.tree.map(lambda before, after: _moved(before, after, self.strength), h, self.function(h))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Replace(Edit):
    r"""$h_t \mapsto h_t + s\,(c - h_t)$ for one value $c$, or $c_t$ of each position: see `replace`.

    Attributes:
        value: $c$, which must broadcast to the value at one position; or with an axis of positions in front.
        by_position: whether it has that axis. Positions past its end are not edited.
    """

    value: Leaf
    by_position: bool = field(default=False, metadata={"static": True})

    def at_positions(self, h: Any, drive: Float[Array, "t e"], positions: Int[Array, " t"]) -> Any:
        """The value moved towards $c$ by the share $s$."""
        if not self.by_position:
            return _moved(h, jnp.asarray(self.value, h.dtype), self.strength)
        count = self.value.shape[0]
        values = jnp.asarray(self.value, h.dtype)[jnp.minimum(positions, count - 1)]
        if self.is_pattern:
            values = jnp.moveaxis(values, 1, 0)
            values = jnp.pad(values, [(0, 0), (0, 0), (0, max(0, h.shape[2] - count))])[..., : h.shape[2]]
        has_value = (positions < count).reshape([-1 if a == self.is_pattern else 1 for a in range(h.ndim)])
        return jnp.where(has_value, _moved(h, values, self.strength), h)

    @property
    def is_pattern(self) -> bool:
        """Whether the value is an attention pattern, whose positions are its queries."""
        return parse_site(self.site, 10**6)[0] == InnerSite.PATTERN


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Resample(Edit):
    r"""$h_t \mapsto h_t + s\,(c_{i(t)} - h_t)$ with a value that is drawn for each position: see `resample_ablation`.

    Attributes:
        pool: the values $c$ to draw from, ``[n, ...]``.
        seed: an integer that determines the draws $i(t)$.
    """

    pool: Leaf
    seed: Leaf = 0

    def at_positions(self, h: Any, drive: Float[Array, "t e"], positions: Int[Array, " t"]) -> Any:
        """The value moved towards the drawn one by the share $s$."""
        key, count = jax.random.key(self.seed), self.pool.shape[0]
        draws = jax.vmap(lambda t: jax.random.randint(jax.random.fold_in(key, t), (), 0, count))(positions)
        return _moved(h, jnp.asarray(self.pool, h.dtype)[draws], self.strength)


def _moved(before: Array, after: Any, strength: Any) -> Array:
    """`before`, moved towards `after` by the share `strength`."""
    try:
        after = jnp.broadcast_to(jnp.asarray(after), before.shape)
    except (TypeError, ValueError) as error:
        raise SteeringError(
            f"Edit: expected a value of shape {before.shape}, as at its site; found {np.shape(after)}."
        ) from error
    if not jnp.issubdtype(before.dtype, jnp.floating):  # the index of an expert goes all the way or not at all
        return jnp.where(strength == 0, before, after).astype(before.dtype)
    return jnp.where(strength == 1, after, before + strength * (after - before)).astype(before.dtype)


@checked
def apply(
    site: NamedSite, function: Callable[[Any], Any], strength: Number = 1.0, *, where: Any = "all", units: Any = None
) -> Apply:
    r"""An edit by a function of your own, ``apply(("heads", 10), lambda z: 2 * z, units=3)``.

    The function gets the value at the site, of the shape that `jaxlin.record` gives for one layer, at the tokens at
    hand: all of a prompt, or while a text is generated one after the other. It returns one of that shape, of which the
    positions `where` and the heads or features `units` are used. It is written in JAX, and programs are compiled for
    it.

    Raises:
        SteeringError: something that cannot be called, no positions, or no units.
    """
    if not callable(function):
        raise SteeringError(f"Apply: expected a function of the value at the site; found {quoted(function)}.")
    return Apply(site=site, strength=strength, where=check_where(where), units=check_units(units), function=function)


@checked
def replace(site: NamedSite, value: Any, strength: Number = 1.0, *, where: Any = "all", units: Any = None) -> Replace:
    """An edit that puts `value` in the place of that at a site; it must broadcast to the value at one position.

    Raises:
        SteeringError: not numbers, no positions, or no units.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise SteeringError(f"Replace: expected an array; found {quoted(value)}.") from error
    if not array.size:
        raise SteeringError("Replace: expected an array of one number or more; found an empty one.")
    return Replace(site=site, strength=strength, where=check_where(where), units=check_units(units), value=array)


@checked
def zero_ablation(site: NamedSite, strength: Number = 1.0, *, where: Any = "all", units: Any = None) -> Replace:
    """An edit that sets the value at a site to zero: a head, an MLP, a neuron, a stream."""
    return replace(site, 0.0, strength, where=where, units=units)


@checked
def mean_ablation(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    site: NamedSite,
    strength: Number = 1.0,
    *,
    where: Any = "all",
    units: Any = None,
) -> Replace:
    """An edit that puts the mean over all tokens of some prompts in the place of the value at a site.

    Args:
        model: any decoder.
        prompts: the token ids of prompts, which stand for what the model usually reads.
        site: the site, with a layer; not a pattern or a route, of which there is no mean.
        strength, where, units: as of every edit, see `jaxlin.steering.Edit`.

    Raises:
        PromptError: an empty prompt, or one longer than the model's context.
        SiteError: a site that the model does not have.
        SteeringError: no prompts, a single prompt that is not in a list, or a site without a mean.
    """
    return replace(site, jnp.mean(_pool(model, prompts, site), axis=0), strength, where=where, units=units)


@checked
def resample_ablation(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    site: NamedSite,
    strength: Number = 1.0,
    *,
    where: Any = "all",
    units: Any = None,
    seed: int = 0,
) -> Resample:
    """An edit that puts the value at a random token of random prompts in the place of that at each position.

    Unlike a mean it is a value that the model does produce. Arguments and errors are those of `mean_ablation`, and a
    `seed` of the draws. Source: Chan et al., "Causal Scrubbing", 2022.
    """
    pool, positions = _pool(model, prompts, site), check_where(where)
    return Resample(site=site, strength=strength, where=positions, units=check_units(units), pool=pool, seed=seed)


@checked
def patch(
    model: Decoder,
    other: Float[Embeddings, "t d"],
    site: NamedSite,
    strength: Number = 1.0,
    *,
    where: Any = "all",
    units: Any = None,
) -> Replace:
    """An edit that puts the value in another prompt, at the same position, in the place of that at a site.

    Args:
        model: any decoder.
        other: the input embeddings of the other prompt. Positions past its end are not edited.
        site: the site, with a layer: streams, outputs, heads, neurons, queries, keys, values or the pattern.
        strength, where, units: as of every edit, see `jaxlin.steering.Edit`.

    Raises:
        PromptError: `other` is not of shape ``[t, d]``.
        SiteError: a site that the model does not have.
        SteeringError: a site of all layers, or a route.
    """
    name = _site_of_one_layer(model, site, (InnerSite.ROUTE,))
    value = record(model, other, (site,))[site]
    value = jnp.moveaxis(value, 1, 0) if name == InnerSite.PATTERN else value
    positions, checked_units = check_where(where), check_units(units)
    return Replace(site=site, strength=strength, where=positions, units=checked_units, value=value, by_position=True)


def _pool(model: Decoder, prompts: Sequence[Sequence[int]], site: Any) -> Array:
    """The values at a site of all tokens of some prompts."""
    _site_of_one_layer(model, site, (InnerSite.PATTERN, InnerSite.ROUTE))
    if isinstance(prompts, str) or not len(prompts) or any(np.ndim(ids) != 1 for ids in prompts):
        raise SteeringError(f"Ablation: expected a list of prompts, each a list of token ids; found {quoted(prompts)}.")
    return jnp.concatenate([record(model, model.embed(ids), (site,))[site] for ids in prompts])


def _site_of_one_layer(model: Decoder, site: Any, refused: tuple[str, ...]) -> str:
    """The name of a site of one layer, none of those `refused`."""
    name, layer = parse_site(site, model.config.num_hidden_layers)
    if name in refused or (layer is None and name not in ("embed", "final")):
        raise SteeringError(
            f'Edit: expected the site of one layer, as ("heads", 1), and no {name}; found {quoted(site)}.'
        )
    return name
