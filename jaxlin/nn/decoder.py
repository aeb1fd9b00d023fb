r"""`Decoder`: embed, a scan of blocks, final norm, unembed.

The forward pass is a `jax.lax.scan` over blocks whose parameters are stacked on a leading layer axis, or one for each
segment of the layers, if not all are alike: see `jaxlin.nn.stack`.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.common.errors import JaxlinError, UnembeddingError
from jaxlin.common.printable import quoted
from jaxlin.nn import layers
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.freeze_modes import Detach, Plain
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.layer_scan import scan_layers
from jaxlin.nn.modules import Embedding, Unembedding, parameter_value
from jaxlin.nn.precision import Precision, matmul_precision
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.stack import LayerIndex, Layout, Stack, layer_of


class PromptError(JaxlinError):
    """A prompt that does not fit the model."""


class Decoder(nnx.Module):
    """A decoder-only transformer as an immutable pytree: only `jax` transforms, no mutation after construction.

    A family subclasses it with its `Block`, called as ``block(x, schedule, ctx)``, and its final norm. The
    parameters have the names of the checkpoint's tensors without their ``model.``.

    Attributes:
        config: the family's `Config`, static.
        linearize: whether nonlinear factors are constants to differentiation, static: see `jaxlin.load`.
        rule: the freeze rule of gated MLPs, static.
        precision: how float32 matrices are multiplied, static.
        dtype: the dtype of activations, static.
    """

    Block: ClassVar[Any]
    head_bias: ClassVar[bool] = False
    config: Any
    layers: Any
    linearize: bool
    rule: Rule
    precision: Precision
    dtype: str

    def __init__(
        self,
        config: Config,
        *,
        rngs: nnx.Rngs,
        linearize: bool = False,
        rule: Rule = "gate",
        precision: Precision = "highest",
        dtype: str = "float32",
    ) -> None:
        self.config, self.linearize, self.rule, self.dtype = config, linearize, rule, dtype
        self.precision = precision
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = nnx.data(self.make_layers(jax.random.split(rngs.params(), config.num_hidden_layers)))
        self.norm = self.final_norm(config)
        self.lm_head = Unembedding(config, bias=self.head_bias, rngs=rngs) if config.has_unembedding else None

    def make_layers(self, keys: Array) -> Any:
        """The blocks of all layers, from the key of each: a stacked block, or a `Stack` if not all are alike."""

        def blocks_at(layers: range) -> Any:
            kind = self.config.layer_kinds[layers.start] if self.config.layer_kinds else ""
            rows = slice(layers.start, layers.stop, layers.step)
            return jax.vmap(lambda key: self.make_block(self.config, kind, nnx.Rngs(key)))(keys[rows])

        layout = self.layout
        if layout.is_uniform:
            return blocks_at(range(layout.depth))
        segments = layout.segments
        return Stack(tuple(tuple(map(blocks_at, map(each.layers, range(each.period)))) for each in segments), layout)

    def make_block(self, config: Any, kind: str, rngs: nnx.Rngs) -> Any:
        """A block of a kind in `Config.layer_kinds`; a family whose layers are not all alike overrides it."""
        return type(self).Block(config, rngs=rngs)

    @property
    def layout(self) -> Layout:
        """How the layers are stacked."""
        return Layout.of(self.config.layer_kinds or ("",) * self.config.num_hidden_layers)

    @property
    def sites(self) -> tuple[str, ...]:
        """The kinds of sites that a block has."""
        return self.Block.sites

    def final_norm(self, config: Config) -> Any:
        """The norm between the last block and the unembedding."""
        raise TypeError(f"{type(self).__name__} defines no final norm")

    def embed(self, ids: Sequence[int] | Int[Array, " t"], start: int | Int[Array, ""] = 0) -> Float[Array, "t d"]:
        """The input embeddings of token `ids`, in which the local linear map is linear.

        Args:
            ids: the tokens.
            start: the position of the first of them, if they continue a text. Most models rotate queries and keys
                instead, so that their embeddings are those at every position.

        Raises:
            PromptError: no ids, an id outside the vocabulary, or more ids than the model's context.
        """
        checked = ids if isinstance(ids, jax.core.Tracer) else self.check_ids(ids)
        return self.embed_tokens.weight[jnp.asarray(checked)].astype(self.dtype)

    def moved_embeddings(
        self, x: Float[Array, "*b d"], before: Int[Array, "*b"], after: Int[Array, "*b"]
    ) -> Float[Array, "*b d"]:
        """The input embeddings at the positions `after` of the tokens that have `x` at `before`.

        They are `x`, unless the embeddings of a model have a part for the position.
        """
        return x

    def check_ids(self, ids: Any) -> np.ndarray:
        """Return `ids` as an array if they are a prompt.

        Raises:
            PromptError: no ids, an id outside the vocabulary, or more ids than the model's context.
        """
        config = self.config
        try:
            ids = np.asarray(ids)
        except ValueError as error:  # NumPy's, of lists that are not of one length
            raise PromptError(f"Prompt: expected a list of token ids, not of lists; found {quoted(ids)}.") from error
        if ids.dtype.kind in "US":
            raise PromptError("Prompt: expected token ids; found text. tokenizer.encode(text) gives its ids.")
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise PromptError(f"Prompt: expected a list of one token id or more; found shape {ids.shape}, {ids.dtype}.")
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            unknown = int(ids.min() if ids.min() < 0 else ids.max())
            raise PromptError(
                f"Prompt: expected token ids in 0..{config.vocab_size - 1}, those the model has embeddings for; "
                f"found {unknown}. A tokenizer may have more, as of images or of a fine-tune: leave them out."
            )
        if config.max_position_embeddings is not None and ids.size > config.max_position_embeddings:
            raise PromptError(
                f"Prompt: expected at most {config.max_position_embeddings} tokens, this model's context; "
                f"found {ids.size}. Shorten the prompt."
            )
        return ids

    def check_embeddings(self, x: Any) -> None:
        """Refuse anything but embeddings of one token or more, of finite numbers in a dtype that is wide enough.

        Raises:
            PromptError: `x` is not of shape ``[t, d]``, its dtype is narrower than what the model computes in, or,
                where it is not traced, an entry is not finite.
        """
        shape, d = getattr(x, "shape", None), self.config.hidden_size
        if shape is None or len(shape) != 2 or shape[0] == 0 or shape[1] != d:
            received = f"a {type(x).__name__}" if shape is None else f"shape {tuple(shape)}"
            raise PromptError(
                f"Embeddings: expected shape (t, {d}), one token or more, as model.embed(ids) gives; found {received}."
            )
        if not jnp.issubdtype(getattr(x, "dtype", object), jnp.floating):
            raise PromptError(f"Embeddings: expected floats, as model.embed(ids) gives; found {x.dtype}.")
        if jnp.finfo(x.dtype).bits < jnp.finfo(self.dtype).bits:
            raise PromptError(
                f"Embeddings: expected {self.dtype}, what this model computes in; found {x.dtype}, in which all of it "
                f'would be computed. Widen them: x.astype("{self.dtype}").'
            )
        if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return
        finite = np.isfinite(np.asarray(x)).all(axis=1)
        if not finite.all():
            raise PromptError(
                f"Embeddings: expected finite numbers; found NaN or infinity at position {int(np.argmin(finite))}."
            )

    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The residual stream after the final norm, at every position.

        Raises:
            PromptError: `x` is not of shape ``[t, d]``.
        """
        self.check_embeddings(x)
        mode = Detach(self.rule) if self.linearize else Plain()
        x, _ = self.scan(x, lambda _: Context(mode))
        return self.norm(x, Context(mode))

    def unembed(
        self, h: Float[Array, "*b d"], ctx: Context | None = None, ids: Int[Array, " n"] | None = None
    ) -> Float[Array, "*b vocab"]:
        """The logits of `h`, a point after the final norm.

        Args:
            h: the residual stream after the final norm.
            ctx: the context of the softcap that some models apply to their logits; by default a plain one.
            ids: the tokens whose logits are computed; by default all.

        Raises:
            UnembeddingError: the checkpoint has no unembedding.
        """
        head = self.unembedding
        weight = (self.embed_tokens.weight if head.weight is None else head.weight)[... if ids is None else ids]
        bias = parameter_value(head.bias)
        if ids is not None and bias is not None:
            bias = bias[ids]
        with self.at_precision():
            logits = layers.affine(h, weight, bias) * self.config.logit_scale
        cap = self.config.final_logit_softcapping
        return logits if cap is None else layers.softcap(logits, cap, ctx or Context())

    @property
    def unembedding(self) -> Unembedding:
        """The matrix and the bias that give the logits.

        Raises:
            UnembeddingError: the checkpoint has no unembedding.
        """
        if self.lm_head is None:
            raise UnembeddingError(
                "Logits: expected a model with an unembedding; found one whose checkpoint has none, as those of "
                "embedding models and classifiers. model(x), its local linear map and the residual stream still work; "
                "for logits and tokens load a checkpoint of the language model."
            )
        return self.lm_head

    def scan(
        self,
        x: Float[Array, "t *b d"],
        make_context: Callable[[Any], Context],
        rows: Any = None,
        *,
        schedule: Schedule | Stack | None = None,
        start: int = 0,
        stop: int | None = None,
        collect: Callable[[Context], Any] = lambda ctx: None,
    ) -> tuple[Float[Array, "t *b d"], Any]:
        """The residual stream after the blocks from `start` to before `stop`, from `x` before them.

        Args:
            x: the residual stream before block `start`.
            make_context: makes the context of a block from its row of `rows`.
            rows: a pytree stacked over all layers.
            schedule: the schedules of all layers, stacked; by default those of a prompt of these tokens.
            start: the first block.
            stop: the block after the last; None for all.
            collect: takes, from the context of a block that has run, the values to return, stacked over the blocks.
        """
        stack = (self.layers, self.schedule(x.shape[0]) if schedule is None else schedule, rows)

        def step(x: Array, layer: Any) -> tuple[Array, Any]:
            block, own_schedule, row = layer
            ctx = make_context(row)
            ctx.enter(block, own_schedule)
            return block(x, own_schedule, ctx), collect(ctx)

        with self.at_precision():
            return scan_layers(self.layout, step, x, stack, start, self.layout.depth if stop is None else stop)

    def block(self, layer: int | Array | LayerIndex, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "q *b d"]:
        """The residual stream after one block, from `x` before it; `layer` is as in `jaxlin.nn.stack.layer_of`."""
        block, schedule = layer_of((self.layers, self.schedule(x.shape[0])), layer)
        with self.at_precision():
            ctx.enter(block, schedule)
            return block(x, schedule, ctx)

    def at_precision(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which `jaxlin.nn.layers.product` has the precision of this model."""
        return jax.default_matmul_precision(matmul_precision(self.precision, self.dtype))

    def same_frequencies(self, tokens: int, others: int) -> bool:
        """Whether prompts of both lengths have the same rotary frequencies: of some ropes they depend on the length."""
        pairs = [(rope.frequencies(tokens), rope.frequencies(others)) for rope in self.config.ropes]
        return all(np.array_equal(a, b) and a_scale == b_scale for (a, a_scale), (b, b_scale) in pairs)

    def schedule(self, tokens: int, positions: Int[Array, " t"] | None = None) -> Schedule | Stack:
        """The schedules of all blocks for a prompt of `tokens`, stacked: see `jaxlin.nn.stack`.

        Args:
            tokens: the length of the prompt, on which some rotary frequencies depend.
            positions: those of the tokens at hand; by default all.
        """
        wide = jnp.promote_types(self.dtype, jnp.float32)
        inv_freq, scale = zip(*(rope.frequencies(tokens) for rope in self.config.ropes), strict=True)
        frequencies = jax.tree.map(lambda a: jnp.asarray(a, wide), self.layout.stacked(inv_freq))
        positions = jnp.arange(tokens) if positions is None else positions
        first = self.config.first_visible(positions)
        positions = jnp.broadcast_to(positions[None], first.shape)
        return self.layout.map(Schedule, frequencies, jnp.asarray(scale, wide), positions, first)

    def moved(self, schedule: Schedule | Stack, positions: Int[Array, " t"]) -> Schedule | Stack:
        """`schedule` for tokens at other positions of the same text."""
        first = self.config.first_visible(positions)
        positions = jnp.broadcast_to(positions[None], first.shape)

        def at_positions(part: Schedule, positions: Array, first: Array) -> Schedule:
            return part._replace(positions=positions, first_visible=first)

        return self.layout.map(at_positions, schedule, positions, first)
