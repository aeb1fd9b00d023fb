r"""The exact lens of one prompt: the contribution of each token's stream, at each layer, to the output.

With nonlinear factors frozen, the model from any layer on is affine: $f(x) = \sum_t J_{l,t}\,x_{l,t} + b_l$ for the
stream $x_l$ before block $l$. Each part $J_{l,t}\,x_{l,t}$ is a direction of the output, which the unembedding reads
with no norm between. Other lenses estimate a prediction; these parts add up to the output of the model itself.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin import plots
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.arrays import relative_error
from jaxlin.lens.prompt_maps import default_dim_batch
from jaxlin.linearize.backward import pull_back, stream_direction
from jaxlin.linearize.frozen import FrozenFactors, record, rule_of
from jaxlin.nn.biases import has_biases, without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.prompt import Embeddings
from jaxlin.nn.sites import position_in
from jaxlin.results import Result, note, traced_to
from jaxlin.spectrum.word_results import Poles
from jaxlin.spectrum.words import left_words


@dataclass(frozen=True, repr=False, eq=False)
class ExactLens(Result):
    r"""The parts of one output: ``parts[l].sum(0) + bias[l] == output`` at every layer.

    Attributes:
        output: $f(x)$ at one position, after the final norm, ``[d]``, from the forward pass.
        parts: $J_{l,t}\,x_{l,t}$ for the stream of each token before block $l$, ``[layers + 1, t, d]``. The first row
            belongs to the embeddings, the last to the stream after the last block. The contribution of a part to the
            logit of a word is its product with the word's row of the unembedding.
        bias: $b_l$, the contribution of the additive biases from block $l$ on, ``[layers + 1, d]``.
    """

    AXES: ClassVar = {
        "output": ("feature",),
        "parts": ("layer", "position", "feature"),
        "bias": ("layer", "feature"),
        "projections": ("layer", "position"),
    }
    PROPERTIES: ClassVar = ("defect",)

    output: Float[np.ndarray, " d"]
    parts: Float[np.ndarray, "n t d"]
    bias: Float[np.ndarray, "n d"]

    @property
    def defect(self) -> float:
        r"""The largest $\lVert \sum_t J_{l,t}\,x_{l,t} + b_l - f \rVert / \lVert f \rVert$ of any layer."""
        errors = np.linalg.norm(self.parts.sum(1) + self.bias - self.output, axis=-1)
        return float(relative_error(errors.max(), np.linalg.norm(self.output)))

    @property
    def projections(self) -> Float[np.ndarray, "n t"]:
        r"""$f \cdot J_{l,t}\,x_{l,t} / \lVert f \rVert^2$: each token's part along the output."""
        return np.asarray(self.parts @ self.output / np.sum(np.square(self.output)))

    def _draw(self, ax: Any) -> None:
        """A heat map of the projections, layer by token."""
        layers, positions = self.projections.shape
        plots.heat_map(ax, self.projections, list(map(str, range(layers))), self._labels("position", positions))
        plots.write(ax, title="Parts of the tokens along the output", ylabel="before layer")

    def words(self, model: Decoder, k: int = 8) -> Poles:
        """The `k` tokens that each part raises most and lowers most, ``[layers + 1, t, k]``.

        Raises:
            JaxlinError: `k` is not in 1..vocabulary, or a model of another width.
        """
        poles = left_words(model, self.parts, k)
        note(poles, self.provenance)
        return poles


@checked
def exact(
    model: Decoder, x: Float[Embeddings, "t d"], *, position: int = -1, rule: Rule | str | None = None
) -> ExactLens:
    """The parts of the output at `position` that belong to each token, before every block.

    It takes one forward pass that records, and a backward pass of ``d`` rows: as many operations as a dense map.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        position: the position of the output; negative counts from the last token. The parts of later tokens are zero.
        rule: the freeze rule of gated MLPs; the model's own by default.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: no such position.
        JaxlinError: no such rule, or within a transform of JAX.
    """
    check_not_traced("Exact lens", model, x)
    prompt, x = x, model.check_embeddings(x)
    tokens, d = x.shape
    index, frozen_rule = position_in(tokens, position), rule_of(model, rule)
    frozen, values, last_stream, output = _recorded(model, x, index, frozen_rule)
    streams = values["resid_pre"]
    block = default_dim_batch(model, tokens, frozen=True)
    blocks = [
        _features(model, frozen, values, index, start, block=block)[..., : d - start] for start in range(0, d, block)
    ]
    parts = np.zeros((len(streams) + 1, tokens, d), x.dtype)
    parts[:-1] = np.concatenate(blocks, axis=-1)
    norm_factors = jax.tree.map(lambda a: a[index], frozen.norm)
    parts[-1, index] = without_biases(model).norm(last_stream[index], Context(Replay(norm_factors)))
    bias = _bias_contributions(model, frozen, index) if has_biases(model) else np.zeros((len(parts), d), x.dtype)
    return traced_to(
        ExactLens(np.asarray(output), parts, np.asarray(bias)), model, prompt, rule=rule, position=position
    )


@functools.partial(jax.jit, static_argnames="rule")
def _recorded(
    model: Decoder, x: Float[Embeddings, "t d"], position: Any, rule: Rule
) -> tuple[FrozenFactors, dict[str, Float[Array, "l t ..."]], Float[Array, "t d"], Float[Array, " d"]]:
    """The frozen factors, the streams and shared values before each block, the last stream, and the output."""
    recording = record(model, x, ("resid_pre", *model.shared_sites), rule=rule)
    return recording.frozen, recording.sites, recording.stream, recording.output[position]


@functools.partial(jax.jit, static_argnames="block")
def _features(
    model: Decoder, frozen: FrozenFactors, values: dict[str, Any], position: Any, start: Any, *, block: int
) -> Float[Array, "l t b"]:
    """The output features from `start` on of each part.

    A part is the derivative of the output by a factor on the stream it belongs to, and on the values that blocks share.
    """
    layers, tokens, d = values["resid_pre"].shape
    u = jax.nn.one_hot(start + jnp.arange(block), d, dtype=values["resid_pre"].dtype)
    factors = jax.ShapeDtypeStruct((layers, tokens, block), u.dtype)
    gradients = pull_back(
        model,
        frozen,
        stream_direction(model, frozen, u, position),
        factors,
        probes=lambda factor, row: {
            kind: factor.reshape(*factor.shape, *(1,) * (value.ndim - 1)) * value[:, None]
            for kind, value in row.items()
        },
        constants=(values,),
    )
    return gradients.added


@jax.jit
def _bias_contributions(model: Decoder, frozen: FrozenFactors, position: Any) -> Float[Array, "n d"]:
    """The outputs of the frozen model, with its biases, for a stream of zero before each block and after the last."""
    depth, d = model.config.num_hidden_layers, model.config.hidden_size
    starts = jnp.arange(depth + 1)

    def from_zero(row: Any) -> Context:
        # Row s of the batch stays zero until block s.
        layer, factors = row
        has_begun = jnp.asarray(starts < layer, model.dtype)

        def begin(value: Float[Array, "t n ..."]) -> Float[Array, "t n ..."]:
            return value * has_begun.reshape(1, -1, *(1,) * (value.ndim - 2))

        return Context(Replay(factors), Hooks(edits=dict.fromkeys(("resid_pre", *model.shared_sites), begin)))

    zeros = jnp.zeros((frozen.tokens, depth + 1, d), model.dtype)
    x, _ = model.scan(zeros, from_zero, (starts[:-1], frozen.layers))
    x = x * jnp.asarray(starts < depth, x.dtype)[None, :, None]
    return model.norm(x, Context(Replay(frozen.norm)))[position]
