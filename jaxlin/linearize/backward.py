r"""The transpose of the frozen model, which gives gradients with every nonlinear factor frozen.

The frozen model is affine, and only a linear function has a transpose, so it runs without its additive biases. JAX
cannot transpose a function that adds a constant, even zero, so everything that is added must be an input. Only this
module handles these two rules: an analysis calls `pull_back`, or `transpose` if it runs blocks in its own way.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.annotations import accepting
from jaxlin.common.arguments import checked
from jaxlin.common.arrays import equal_by_identity
from jaxlin.linearize.frozen import FrozenFactors
from jaxlin.nn.biases import biases_of, with_biases, without_biases
from jaxlin.nn.context import Context, Evaluation
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.folding import folding_pays
from jaxlin.nn.freeze_modes import Replay
from jaxlin.nn.hooks import Hooks


def _counts_layers(tree: Any) -> bool:
    return all(len(getattr(leaf, "shape", ())) > 0 for leaf in jax.tree.leaves(tree))


LayerArrays = Annotated[Any, accepting("a pytree of arrays whose first axis counts layers", _counts_layers)]
"""Arrays with a slice for each layer, in any pytree."""


@equal_by_identity
class Gradients(NamedTuple):
    """The gradients that `pull_back` returns, for directions with batch axes ``*b``.

    Attributes:
        stream: the gradient in the residual stream that enters the first block, ``[t, *b, d]``.
        added: the gradients in the values added at the sites, of the shapes of the argument `added`.
        bias_terms: `biases`, or None without ``biases=True``.
    """

    stream: Float[Array, "t *b d"]
    added: Any
    bias_terms: Float[Array, " l"] | None

    @property
    def biases(self) -> Float[Array, " l"]:
        """The contribution of the additive biases of each block to the value, ``[l]``.

        Raises:
            TypeError: `pull_back` was called without ``biases=True``.
        """
        if self.bias_terms is None:
            raise TypeError("Gradients: expected pull_back(..., biases=True) before the biases are read.")
        return self.bias_terms


@checked
def transpose(function: Callable[..., Any], model: Decoder, *inputs: Any) -> Callable[[Any], tuple[Any, ...]]:
    """The transpose of ``function(model, *inputs)``, which runs a frozen `model`, with respect to all inputs jointly.

    Args:
        function: a function that is called with `model` without its biases and must be jointly linear in `inputs`.
            Whatever it adds to the residual stream must be an input, even a stream of zero, whose gradient is ignored.
        model: the decoder.
        inputs: pytrees of arrays or of `jax.ShapeDtypeStruct`; their values are not read.

    Returns:
        A function from the gradient in the output to the gradient in each input, which runs no forward pass.
    """
    return jax.linear_transpose(functools.partial(function, without_biases(model)), *inputs)


@checked
def stream_direction(
    model: Decoder, frozen: FrozenFactors, u: Float[Array, "*b d"], position: int | Int[Array, ""]
) -> Float[Array, "t *b d"]:
    r"""The direction of the residual stream after the last block that reads $u \cdot f$ through the frozen final norm.

    It is zero at all positions except `position`.
    """

    def normed(bare: Decoder, stream: Float[Array, "t *b d"]) -> Float[Array, "*b d"]:
        return bare.norm(stream, Context(Replay(frozen.norm)))[position]

    return transpose(normed, model, jax.ShapeDtypeStruct((frozen.tokens, *u.shape), u.dtype))(u)[0]


@checked
def pull_back(
    model: Decoder,
    frozen: FrozenFactors,
    direction: Float[Array, "t *b d"],
    added: LayerArrays = None,
    *,
    probes: Callable[..., Mapping[str, Array]] = lambda added: added or {},
    constants: LayerArrays = (),
    start: int = 0,
    biases: bool = False,
) -> Gradients:
    r"""The gradients of $\sum_t g_t \cdot h_t$, for a direction $g$ of the residual stream $h$ after the last block.

    One backward pass through the frozen blocks computes all of them. With the gradient $r_s$ in the stream $x_s$ that
    enters block `start`, $\sum_t g_t \cdot h_t = \sum_s r_s \cdot x_s$ plus the contributions of the biases. A probe is
    a zero that is added at a site: the gradient in it is the gradient in the value there. If `probes` computes it from
    something smaller, as a number times a constant vector, the gradient is in that number and takes no more memory.

    Args:
        model: the decoder.
        frozen: its frozen factors, from `jaxlin.freeze`.
        direction: $g$, one or a batch; `stream_direction` makes it from directions of the output.
        added: the values added at the sites, a pytree of arrays whose first axis counts layers: a dict from kinds of
            sites to arrays ``[l, t, *b, ...]``, unless `probes` expects another. Only the shapes are read.
        probes: a function that makes the probes of one block, a dict from kinds of sites, from its slices of `added`
            and `constants`; it must be linear in the former.
        constants: further arrays for `probes` whose first axis counts layers.
        start: the first block; the gradients in earlier blocks are zero.
        biases: whether to compute the contributions of the biases, which needs a single direction.
    """
    d, tokens = direction.shape[-1], direction.shape[0]
    rows = math.prod(direction.shape[1:-1])
    evaluation = Evaluation(fold=not biases and folding_pays(rows, d, model.config.neurons))
    # A gradient has the dtype of its parameter, which may be narrower than the stream.
    parameters = jax.tree.map(lambda bias: bias.astype(direction.dtype), biases_of(model)) if biases else None

    def blocks(bare: Decoder, stream: Float[Array, "t *b d"], added: Any, parameters: Any) -> Float[Array, "t *b d"]:
        def replay_block(row: Any) -> Context:
            factors, block_added, block_constants = row
            return Context(Replay(factors), Hooks(probes=probes(block_added, *block_constants)), evaluation=evaluation)

        frozen_model = bare if parameters is None else with_biases(bare, parameters)
        return frozen_model.scan(stream, replay_block, (frozen.layers, added, constants), start=start)[0]

    stream = jax.ShapeDtypeStruct((tokens, *direction.shape[1:]), direction.dtype)
    in_stream, in_added, in_biases = transpose(blocks, model, stream, added, parameters)(direction)
    return Gradients(in_stream, in_added, _contributions(model, in_biases, parameters, direction.dtype))


def _contributions(model: Decoder, gradients: Any, parameters: Any, dtype: Any) -> Float[Array, " l"] | None:
    """The gradient in each bias times that bias, summed over each block."""
    if parameters is None:
        return None

    def of_layers(zeros: Float[Array, " l"], gradients: Any, parameters: Any) -> Float[Array, " l"]:
        by_bias = jax.tree.map(
            lambda gradient, bias: jnp.sum((gradient * bias).reshape(len(bias), -1), axis=-1), gradients, parameters
        )
        return sum(jax.tree.leaves(by_bias), zeros)

    zeros = jnp.zeros(model.config.num_hidden_layers, dtype)
    if model.edits is not None:  # what the edits of a layer add counts as one of its biases
        zeros = gradients.edits.bias * parameters.edits.bias
    return model.layout.map(of_layers, zeros, gradients.layers, parameters.layers)
