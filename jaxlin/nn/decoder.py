r"""`Decoder`: embed, a scan of blocks, final norm, unembed.

The forward pass is a `jax.lax.scan` over blocks whose parameters are stacked on a leading layer axis, or one for each
segment of the layers, if not all are alike: see `jaxlin.nn.stack`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError, UnembeddingError
from jaxlin.common.provenance import checkpoint_of, note_checkpoint
from jaxlin.nn import layers
from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.freeze_modes import Detach, FreezeMode, Plain
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.layer_stack import Layers
from jaxlin.nn.model_edits import ModelEdits
from jaxlin.nn.modules import Embedding, Unembedding, parameter_value
from jaxlin.nn.precision import Precision
from jaxlin.nn.prompt import Embeddings, NotesIds, Prompt, check_ids, checked_embeddings
from jaxlin.nn.stack import Stack


class Decoder(NotesIds, Layers):
    """A decoder-only transformer as an immutable pytree: only `jax` transforms, no mutation after construction.

    A family subclasses it with its `Block`, called as ``block(x, schedule, ctx)``, and its final norm. The
    parameters have the names of the checkpoint's tensors without their ``model.``.

    Attributes:
        config: the family's `Config`, static.
        linearize: whether nonlinear factors are constants to differentiation, static: see `jaxlin.load`.
        rule: the freeze rule of gated MLPs, static.
        precision: how float32 matrices are multiplied, static.
        dtype: the dtype of activations, static.
        edits: the edits that the model carries, if any: see `jaxlin.with_edits`.
    """

    Block: ClassVar[Any]
    head_bias: ClassVar[bool] = False
    config: Any
    layers: Any
    linearize: bool
    rule: Rule
    precision: Precision
    dtype: str
    edits: ModelEdits | None

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
        self.precision, self.edits = precision, nnx.data(None)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = nnx.data(self.make_layers(rngs))
        self.norm = self.final_norm(config)
        self.lm_head = Unembedding(config, bias=self.head_bias, rngs=rngs) if config.has_unembedding else None

    def make_layers(self, rngs: nnx.Rngs) -> Any:
        """The blocks of all layers: a stacked block, or a `Stack` if not all are alike."""
        keys = jax.random.split(rngs.params(), self.config.num_hidden_layers)

        def blocks_at(layers: range) -> Any:
            kind = self.config.layer_kinds[layers.start] if self.config.layer_kinds else ""
            rows = slice(layers.start, layers.stop, layers.step)
            return jax.vmap(lambda key: self.make_block(self.config, kind, type(rngs)(key)))(keys[rows])

        layout = self.layout
        if layout.is_uniform:
            return blocks_at(range(layout.depth))
        segments = layout.segments
        return Stack(tuple(tuple(map(blocks_at, map(each.layers, range(each.period)))) for each in segments), layout)

    def make_block(self, config: Any, kind: str, rngs: nnx.Rngs) -> Any:
        """A block of a kind in `Config.layer_kinds`; a family whose layers are not all alike overrides it."""
        return type(self).Block(config, rngs=rngs)

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
        return self.copy_with(linearize=True)

    @property
    def plain(self) -> "Decoder":
        """This model as `jaxlin.load` gives it by default, with its ordinary derivatives, sharing its weights."""
        return self.copy_with(linearize=False)

    def copy_with(self, **attributes: Any) -> "Decoder":
        """A copy with other attributes, which shares the weights."""
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
        valid = ids if isinstance(ids, jax.core.Tracer) else self.check_ids(ids)
        x = self.embed_tokens.weight[jnp.asarray(valid)].astype(self.dtype)
        bound: Any = Prompt(x, valid if isinstance(valid, jax.core.Tracer) else tuple(np.asarray(valid).tolist()))
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

    @checked
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
            JaxlinError: `h` is not of shape ``[..., d]``.
        """
        if h.shape[-1:] != (self.config.hidden_size,):
            raise JaxlinError(
                f"Logits: expected points after the final norm, an array [..., {self.config.hidden_size}]; found one "
                f"of shape {list(h.shape)}. model(x) gives them, and exact lenses those of each layer."
            )
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
