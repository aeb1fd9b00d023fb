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

from jaxlin.common.errors import UnembeddingError
from jaxlin.common.provenance import checkpoint_of, note_checkpoint
from jaxlin.nn import layers
from jaxlin.nn.block_input import BlockInput, shared_sites
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.freeze_modes import Detach, FreezeMode, Plain
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.layer_scan import scan_layers, values_before
from jaxlin.nn.modules import Embedding, Unembedding, parameter_value
from jaxlin.nn.precision import Precision, matmul_precision
from jaxlin.nn.prompt import Embeddings, NotesIds, Prompt, array_of, check_ids, checked_embeddings
from jaxlin.nn.schedule import Schedule, moved, same_frequencies, schedules
from jaxlin.nn.sites import Place, is_cut
from jaxlin.nn.stack import LayerIndex, Layout, Stack, layer_of


class Decoder(NotesIds, nnx.Module):
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
    def mode(self) -> FreezeMode:
        """The freeze mode in which the model is called."""
        return Detach(self.rule) if self.linearize else Plain()

    @property
    def linearized(self) -> "Decoder":
        """This model as `jaxlin.load(..., linearize=True)` gives it: nonlinear factors are constants to derivatives.

        `jax.jacfwd` of it is the exact local linear map; the gradient of a loss is that of the frozen model, and second
        derivatives are zero. It shares the weights of this model, whose ordinary derivatives `plain` has.
        """
        return self._copy(linearize=True)

    @property
    def plain(self) -> "Decoder":
        """This model as `jaxlin.load` gives it by default, with its ordinary derivatives, sharing its weights."""
        return self._copy(linearize=False)

    def _copy(self, **attributes: Any) -> "Decoder":
        other = jax.tree.map(lambda a: a, self)
        for name, value in attributes.items():
            setattr(other, name, value)
        if (checkpoint := checkpoint_of(self)) is not None:
            note_checkpoint(other, checkpoint)
        return other

    @property
    def reads_ids(self) -> bool:
        """Whether layers read the token ids, besides the embeddings: see `jaxlin.nn.prompt`."""
        return False

    @property
    def sites(self) -> tuple[str, ...]:
        """The kinds of sites that a block has."""
        return self.Block.sites

    def final_norm(self, config: Config) -> Any:
        """The norm between the last block and the unembedding."""
        raise TypeError(f"{type(self).__name__} defines no final norm")

    def embed(self, ids: Sequence[int] | Int[Array, " t"], start: int | Int[Array, ""] = 0) -> Float[Embeddings, "t d"]:
        """The input embeddings of token `ids`, in which the local linear map is linear.

        They are a `Prompt`, which behaves as an array, if the layers of the model read the ids besides.

        Args:
            ids: the tokens.
            start: the position of the first of them, if they continue a text. Most models rotate queries and keys
                instead, so that their embeddings are those at every position.

        Raises:
            PromptError: no ids, an id outside the vocabulary, or more ids than the model's context.
        """
        checked = ids if isinstance(ids, jax.core.Tracer) else self.check_ids(ids)
        x = self.embed_tokens.weight[jnp.asarray(checked)].astype(self.dtype)
        bound: Any = Prompt(x, checked if isinstance(checked, jax.core.Tracer) else tuple(np.asarray(checked).tolist()))
        return bound if self.reads_ids else x

    def moved_embeddings(
        self, x: Float[Embeddings, "*b d"], before: Int[Array, "*b"], after: Int[Array, "*b"]
    ) -> Float[Embeddings, "*b d"]:
        """The input embeddings at the positions `after` of the tokens that have `x` at `before`.

        They are `x`, unless the embeddings of a model have a part for the position.
        """
        return x

    def check_ids(self, ids: Any) -> np.ndarray:
        """Return `ids` as an array if they are a prompt: see `jaxlin.nn.prompt.check_ids`."""
        return check_ids(ids, self.config)

    def check_embeddings(self, x: Any) -> Any:
        """Return `x`, as programs take it, if it is embeddings: see `jaxlin.nn.prompt.checked_embeddings`."""
        return checked_embeddings(x, self.config.hidden_size, self.dtype, reads_ids=self.reads_ids)

    def __call__(self, x: Float[Embeddings, "t d"]) -> Float[Array, "t d"]:
        """The residual stream after the final norm, at every position.

        Raises:
            PromptError: `x` is not of shape ``[t, d]``.
        """
        x, mode = self.check_embeddings(x), self.mode
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

    def begin(self, x: Any) -> BlockInput:
        """What enters the first block, from the input embeddings, or from a stream where layers read nothing else."""
        return BlockInput(array_of(x))

    def is_cut(self, place: Place) -> bool:
        """Whether all paths from before `place` to the output pass through it: see `jaxlin.nn.sites.is_cut`."""
        return is_cut(place, self.config.value_layers)

    @property
    def shared_sites(self) -> tuple[str, ...]:
        """The sites of the values that blocks share, as each block gets them."""
        return shared_sites(self.config.value_layers, self.config.layer_kinds)

    def direct_factors(self) -> Float[Array, " l"]:
        """The factor of what each layer adds to the stream on its direct path to the stream after the last block."""
        return jnp.ones(self.config.num_hidden_layers, self.dtype)

    def scan(
        self,
        x: Float[Embeddings, "t *b d"] | BlockInput,
        make_context: Callable[[Any], Context],
        rows: Any = None,
        *,
        schedule: Schedule | Stack | None = None,
        start: int = 0,
        stop: int | None = None,
        collect: Callable[[Context], Any] = lambda ctx: None,
    ) -> tuple[Any, Any]:
        """The residual stream after the blocks from `start` to before `stop`, from `x` before them.

        Args:
            x: the residual stream before block `start`, or all that enters it, of which this returns the same kind.
            make_context: makes the context of a block from its row of `rows`.
            rows: a pytree stacked over all layers.
            schedule: the schedules of all layers, stacked; by default those of a prompt of these tokens.
            start: the first block.
            stop: the block after the last; None for all.
            collect: takes, from the context of a block that has run, the values to return, stacked over the blocks.
        """
        inputs = x if isinstance(x, BlockInput) else self.begin(x)
        if schedule is None:
            schedule = self.schedule(inputs.stream.shape[0])
        stack = (self.layers, schedule, rows, inputs.per_layer)
        stop = self.layout.depth if stop is None else stop

        def run(carry: BlockInput, layer: Any) -> tuple[BlockInput, Context]:
            block, own_schedule, row, per_layer = layer
            ctx = make_context(row)
            return ctx.run(block, own_schedule, carry._replace(per_layer=per_layer)), ctx

        def step(carry: BlockInput, layer: Any) -> tuple[BlockInput, Any]:
            carry, ctx = run(carry, layer)
            return carry, collect(ctx)

        with self.at_precision():
            shared = values_before(self.config.value_layers, run, inputs, stack)
            carry = inputs._replace(shared=shared, per_layer=None)
            carry, values = scan_layers(self.layout, step, carry, stack, start, stop)
        return carry._replace(per_layer=inputs.per_layer) if isinstance(x, BlockInput) else carry.stream, values

    def block(self, layer: int | Array | LayerIndex, x: Float[Array, "t *b d"] | BlockInput, ctx: Context) -> Any:
        """The residual stream after one block, or all that enters the next, from `x` before it, as in `scan`.

        `layer` is as in `jaxlin.nn.stack.layer_of`.
        """
        inputs = x if isinstance(x, BlockInput) else BlockInput(x)
        stack = self.layers, self.schedule(inputs.stream.shape[0]), inputs.per_layer
        block, schedule, per_layer = layer_of(stack, layer)
        with self.at_precision():
            after = ctx.run(block, schedule, inputs._replace(per_layer=per_layer))
        return after._replace(per_layer=inputs.per_layer) if isinstance(x, BlockInput) else after.stream

    def at_precision(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which `jaxlin.nn.layers.product` has the precision of this model."""
        return jax.default_matmul_precision(matmul_precision(self.precision, self.dtype))

    def same_frequencies(self, tokens: int, others: int) -> bool:
        """Whether prompts of both lengths have the same rotary frequencies: of some ropes they depend on the length."""
        return same_frequencies(self.config.ropes, tokens, others)

    def schedule(self, tokens: int, positions: Int[Array, " t"] | None = None) -> Schedule | Stack:
        """The schedules of all blocks for a prompt of `tokens`, stacked: see `jaxlin.nn.stack`.

        Args:
            tokens: the length of the prompt, on which some rotary frequencies depend.
            positions: those of the tokens at hand; by default all.
        """
        positions = jnp.arange(tokens) if positions is None else positions
        return schedules(self.config, self.layout, tokens, positions, self.dtype)

    def moved(self, schedule: Schedule | Stack, positions: Int[Array, " t"]) -> Schedule | Stack:
        """`schedule` for tokens at other positions of the same text."""
        return moved(self.config, self.layout, schedule, positions)
