r"""Patching of heads and neurons: the effect of one head's, or one neuron's, values from another prompt in this one.

The value of one unit at all positions, its output, query, key, value or attention pattern, is replaced by that in a
prompt of equally many tokens, and the ordinary model runs on. Of what lies on the linear path, the outputs of heads,
values and neurons, the map predicts the change exactly for the frozen model, for all units from one backward pass.
Queries, keys and patterns are frozen, so that the map predicts nothing of them.

Source: Wang et al., "Interpretability in the Wild", 2022.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin import plots
from jaxlin.activations import record as record_values
from jaxlin.causal.effects import BATCH_SIZE, prompt_up_to
from jaxlin.common.annotations import is_integer
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError, one_of
from jaxlin.common.progress import progress_bar
from jaxlin.linearize.backward import pull_back
from jaxlin.linearize.frozen import record
from jaxlin.linearize.targets import Target, Words, read_target, resolve_target, target_direction
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.patterns import Dense, Pattern
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import FROZEN, InnerSite, SiteError
from jaxlin.nn.stack import layer_of, padded
from jaxlin.results import Result, traced_to
from jaxlin.tokenizer import Tokenizer

UnitKind = Literal["heads", "q", "k", "v", "pattern", "neurons"]


@dataclass(frozen=True, eq=False, repr=False)
class UnitPatching(Result):
    """The effect of the values of each unit in another prompt, ``[layers, units]``.

    An entry is NaN where a layer has fewer units than another, or was not asked for.

    Attributes:
        value: the value of the target in this prompt: a logit, a difference of two, or a projection.
        other: its value in the other prompt.
        effects: how much `value` rises in the ordinary model when all values of the unit come from the other prompt.
        predicted: how much it rises in the frozen model; NaN for queries, keys and patterns, which are frozen.
    """

    AXES: ClassVar = dict.fromkeys(("effects", "predicted"), ("layer", "unit"))

    value: float
    other: float
    effects: Float[np.ndarray, "l u"]
    predicted: Float[np.ndarray, "l u"]

    def _draw(self, ax: Any) -> None:
        """A heat map of the effects, layer by unit."""
        rows, columns = (list(map(str, range(count))) for count in self.effects.shape)
        plots.heat_map(ax, self.effects, rows, columns)
        kind = "values" if self.provenance is None else self.provenance.settings.get("kind", "values")
        plots.write(ax, title=f"Rise of the target with the other prompt's {kind}", xlabel="unit", ylabel="layer")


@checked
def unit_patching(
    model: Decoder,
    x: Float[Embeddings, "t d"],
    other: Float[Embeddings, "t d"],
    target: Target | Words,
    *,
    kind: UnitKind | str = "heads",
    layers: Sequence[int] | None = None,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
) -> UnitPatching:
    """Put the values of each head, or neuron, in `other` into the run at `x`, at all positions, one unit at a time.

    There is one forward pass of the ordinary model for each unit. `jaxlin.steering.patch` makes an edit of the same
    kind for some positions and units.

    Args:
        model: any decoder.
        x: the input embeddings of the prompt that is run.
        other: the input embeddings of the prompt that the values come from, which has as many tokens.
        target: the target, as in `jaxlin.attribute`.
        kind: ``"heads"``, ``"q"``, ``"k"``, ``"v"`` or ``"pattern"`` of each head, or ``"neurons"``.
        layers: the layers whose units are patched; all by default.
        position: where the target is read; negative counts from the last token. Later tokens are left out.
        tokenizer: the model's tokenizer, if the target is words.
        progress: show a progress bar if it takes more than a second.

    Raises:
        PromptError: `x` or `other` is not of shape ``[t, d]``.
        JaxlinError: prompts of different lengths, an invalid target, no such kind, or within a transform of JAX.
        SiteError: no such position or layer, or a kind that the model does not have.
        TokenizerError: a word that is not one token.
    """
    name, prompt = one_of("Patching, kind", kind, get_args(UnitKind)), x
    x, there = prompt_up_to(model, x, position), prompt_up_to(model, other, position)
    if np.shape(prompt) != np.shape(other):
        raise JaxlinError(
            f"Patching: expected prompts of as many tokens; found {np.shape(prompt)[0]} and {np.shape(other)[0]}."
        )
    depth = model.config.num_hidden_layers
    asked = range(depth) if layers is None else list(layers)
    if not all(is_integer(layer) and 0 <= layer < depth for layer in asked):
        raise SiteError(f"Patching: expected layers in 0..{depth - 1}; found {layers}.")
    checked = resolve_target(model, target, x, -1, tokenizer)
    values = record_values(model, there, name)[name]
    axis = 0 if name == InnerSite.PATTERN else 1
    arrays = [jax.tree.leaves(layer_of(values, layer)) for layer in range(depth)]
    counts = [each[0].shape[axis] if each else 0 for each in arrays]
    value, other_value, predicted = _predict(model, x, there, checked, values, name)
    effects = np.full((depth, max(counts)), np.nan, x.dtype)
    for layer in progress_bar(asked, show=progress, unit="layer", desc="patches"):
        units = jnp.arange(counts[layer])
        effects[layer, : counts[layer]] = np.asarray(_patch_each(model, x, values, layer, checked, units, name)) - value
    known = np.full_like(effects, np.nan) if predicted is None else np.asarray(predicted)
    result = UnitPatching(float(value), float(other_value), effects, known)
    settings = {"target": checked, "position": position, "kind": name}
    return traced_to(result, model, prompt, tokenizer=tokenizer, **settings)


@functools.partial(jax.jit, static_argnames="kind")
def _predict(
    model: Decoder, x: Float[Embeddings, "p d"], other: Float[Embeddings, "p d"], target: Array, values: Any, kind: str
) -> tuple[Float[Array, ""], Float[Array, ""], Any]:
    """The values of `target` in both prompts, and the effects in the frozen model, None of what is frozen."""
    here = record(model, x, (kind,))
    value, _, direction = target_direction(model, here, target, -1)
    other_value = read_target(model, model(other)[-1], target, Context())
    if kind in FROZEN:
        return value, other_value, None
    sites = here.sites[kind]
    gradients = pull_back(model, here.frozen, direction, {kind: sites}).added[kind]

    def by_unit(gradients: Any, there: Any, here: Any) -> Array:
        products = gradients * (there - here)
        return jnp.sum(products, axis=(1, *range(3, products.ndim)))

    return value, other_value, padded(model.layout.map(by_unit, gradients, values, sites))


@functools.partial(jax.jit, static_argnames="kind")
def _patch_each(
    model: Decoder,
    x: Float[Embeddings, "p d"],
    values: Any,
    layer: Any,
    target: Array,
    units: Int[Array, " u"],
    kind: str,
) -> Float[Array, " u"]:
    """The value of `target` at the last position, with each unit of a layer replaced in turn."""
    unit_axis = 0 if kind == InnerSite.PATTERN else 1

    def read(unit: Array) -> Array:
        def make_context(row: Any) -> Context:
            number, there = row

            def patched(value: Any) -> Any:
                here = value.array() if isinstance(value, Pattern) else value
                is_patched = (jnp.arange(here.shape[unit_axis]) == unit) & (number == layer)
                mask = is_patched.reshape([-1 if axis == unit_axis else 1 for axis in range(here.ndim)])
                result = jnp.where(mask, there, here)
                return Dense(result) if isinstance(value, Pattern) else result

            return Context(hooks=Hooks(edits={kind: patched}))

        stream, _ = model.scan(x, make_context, (jnp.arange(model.config.num_hidden_layers), values))
        return read_target(model, model.norm(stream, Context())[-1], target, Context())

    return jax.lax.map(read, units, batch_size=BATCH_SIZE)
