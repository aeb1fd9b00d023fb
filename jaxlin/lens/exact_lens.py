r"""The exact lens of one prompt: what the stream of each token, at each layer, is to the model's answer.

Held, the model from any layer on is linear: $f(x) = \sum_t J_{l,t}\,x_{l,t} + b_l$ for the stream $x_l$ before block
$l$. Each part $J_{l,t}\,x_{l,t}$ is an output direction, which the unembedding reads with no norm between. Where the
other lenses guess what a stream would say, these parts add up to what the model says.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.arrays import ShapesRepr, relative_error
from jaxlin.lens.prompt_maps import default_dim_batch
from jaxlin.linearize.frozen import FrozenFactors, record, rule_of
from jaxlin.nn.arguments import check_model
from jaxlin.nn.biases import has_biases, without_biases
from jaxlin.nn.context import Context, Evaluation
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.folding import folding_pays
from jaxlin.nn.freeze_modes import Replay, Rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.sites import position_in
from jaxlin.spectrum.words import Poles, left_words


@dataclass(frozen=True, repr=False, eq=False)
class ExactLens(ShapesRepr):
    r"""The parts of one output: ``parts[l].sum(0) + bias[l] == output`` at every layer.

    Attributes:
        output: $f(x)$ at one position, after the final norm, ``[d]``, from the forward pass.
        parts: $J_{l,t}\,x_{l,t}$ for the stream of each token before block $l$, and in the last row after them all,
            ``[layers + 1, t, d]``. The first row is that of the embeddings. The logit of a word is the product of its
            row of the unembedding with these.
        bias: $b_l$, what the additive biases from there on bring, ``[layers + 1, d]``.
    """

    output: Float[np.ndarray, " d"]
    parts: Float[np.ndarray, "n t d"]
    bias: Float[np.ndarray, "n d"]

    @property
    def defect(self) -> float:
        r"""The largest $\lVert \sum_t J_{l,t}\,x_{l,t} + b_l - f \rVert / \lVert f \rVert$ of any layer."""
        missed = np.linalg.norm(self.parts.sum(1) + self.bias - self.output, axis=-1)
        return float(relative_error(missed.max(), np.linalg.norm(self.output)))

    def words(self, model: Decoder, k: int = 8) -> Poles:
        """The tokens that each part raises and lowers most, ``[layers + 1, t, k]``.

        Raises:
            JaxlinError: `k` is not in 1..vocabulary, or a model of another width.
        """
        return left_words(model, self.parts, k)


def exact(model: Decoder, x: Float[Array, "t d"], *, position: int = -1, rule: Rule | str | None = None) -> ExactLens:
    """The exact parts of the output at `position` by token, before every block.

    One forward pass that records, and a backward pass of ``d`` rows: as many operations as a dense map takes.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        position: of the output; negative counts from the last token. Later tokens bring nothing.
        rule: the freeze rule of gated MLPs; the model's own unless given.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: no such position.
        JaxlinError: no such rule.
    """
    check_model(model)
    model.check_embeddings(x)
    tokens, d = x.shape
    at, chosen = position_in(tokens, position), rule_of(model, rule)
    held, entering, stream, output = _recorded(model, x, at, chosen)
    block = default_dim_batch(model, tokens, frozen=True)
    found = [_rows(model, held, entering, at, start, block=block)[..., : d - start] for start in range(0, d, block)]
    parts = np.zeros((len(entering) + 1, tokens, d), x.dtype)
    parts[:-1] = np.concatenate(found, axis=-1)
    last = Context(Replay(jax.tree.map(lambda a: a[at], held.norm), chosen))
    parts[-1, at] = without_biases(model).norm(stream[at], last)
    bias = _biases(model, held, at) if has_biases(model) else np.zeros((len(parts), d), x.dtype)
    return ExactLens(np.asarray(output), parts, np.asarray(bias))


@functools.partial(jax.jit, static_argnames="rule")
def _recorded(
    model: Decoder, x: Float[Array, "t d"], position: Any, rule: Rule
) -> tuple[FrozenFactors, Float[Array, "l t d"], Float[Array, "t d"], Float[Array, " d"]]:
    recording = record(model, x, ("resid_pre",), rule=rule)
    return recording.frozen, recording.sites["resid_pre"], recording.stream, recording.output[position]


@functools.partial(jax.jit, static_argnames="block")
def _rows(
    model: Decoder, held: FrozenFactors, entering: Float[Array, "l t d"], position: Any, start: Any, *, block: int
) -> Float[Array, "l t b"]:
    """The features from `start` on of each part: of a factor on each stream, the derivative by it."""
    layers, tokens, d = entering.shape
    bare = without_biases(model)
    evaluation = Evaluation(fold=folding_pays(block, d, model.config.intermediate_size))

    def through(stream: Float[Array, "t b d"], factors: Float[Array, "l t b"]) -> Float[Array, "b d"]:
        # The stream is zero: an input, because a function that adds a constant has no transpose.
        x, _ = bare.scan(
            stream,
            lambda row: Context(
                Replay(row[0], held.rule),
                Hooks(probes={"resid_pre": row[1][..., None] * row[2][:, None, :]}),
                evaluation=evaluation,
            ),
            (held.layers, factors, entering),
        )
        return bare.norm(x, Context(Replay(held.norm, held.rule)))[position]

    u = jax.nn.one_hot(start + jnp.arange(block), d, dtype=entering.dtype)
    shapes = [jax.ShapeDtypeStruct(shape, u.dtype) for shape in ((tokens, block, d), (layers, tokens, block))]
    return jax.linear_transpose(through, *shapes)(u)[1]


@jax.jit
def _biases(model: Decoder, held: FrozenFactors, position: Any) -> Float[Array, "n d"]:
    """The held model, with its biases, from a stream of zero before each block and after them all."""
    depth, d = model.config.num_hidden_layers, model.config.hidden_size
    starts = jnp.arange(depth + 1)

    def from_zero(row: Any) -> Context:
        layer, factors = row
        begun = jnp.asarray(starts < layer, model.dtype)[None, :, None]
        return Context(Replay(factors, held.rule), Hooks(edits={"resid_pre": lambda value: value * begun}))

    nothing = jnp.zeros((held.tokens, depth + 1, d), model.dtype)
    x, _ = model.scan(nothing, from_zero, (starts[:-1], held.layers))
    x = x * jnp.asarray(starts < depth, x.dtype)[None, :, None]
    return model.norm(x, Context(Replay(held.norm, held.rule)))[position]
