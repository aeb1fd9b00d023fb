r"""Blocks: where the norms stand around attention and the MLP. A family chooses one and gives it its parts.

==========  =====================================================  ==================================
block       what it adds to the stream $x$                         families
==========  =====================================================  ==================================
`PreNorm`   attn(norm(x)), then mlp(norm(x))                       Llama, Gemma, Mistral, OLMo, Qwen, GPT-2
`Sandwich`  norm(attn(norm(x))), then norm(mlp(norm(x)))           Gemma 2 and 3, Muse Glimmer
`PostNorm`  norm(attn(x)), then norm(mlp(x))                       OLMo 2 and 3
`Parallel`  attn(norm(x)) and mlp(norm(x)), side by side           Phi, GPT-NeoX
==========  =====================================================  ==================================

The sites ``attn_out`` and ``mlp_out`` are what is added, after any norm. The parts have the names of the checkpoint's
tensors.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxlin.nn.config import Config
from jaxlin.nn.context import Context
from jaxlin.nn.layers import add_to_stream
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.sites import KINDS, InnerSite

MakeNorm = Callable[[int], Any]
"""Makes a norm from its number of features."""


class Block(nnx.Module):
    """What all blocks have in common.

    Attributes:
        sites: the sites that it passes.
        mixer: the name of attention. In a model that has several kinds of attention it tells their parameters apart.
        attention_norms: the names of the norms before and after attention; None where there is none.
    """

    sites: ClassVar[tuple[str, ...]] = KINDS
    mixer: ClassVar[str] = "self_attn"
    attention_norms: ClassVar[tuple[str | None, str | None]]

    @abc.abstractmethod
    def feed_forward(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the MLP adds, from the stream that it reads."""

    def read_scores(
        self, x: Float[Array, "t d"], schedule: Schedule, ctx: Context
    ) -> tuple[Float[Array, "t h k"], Float[Array, "t n k"]]:
        """The queries and keys of softmax attention as they enter the scores, from the stream `x`.

        With the factors that `ctx` freezes they are affine in `x`, token by token.
        """
        norm = self.attention_norms[0]
        h = x if norm is None else getattr(self, norm)(x, ctx.within(norm))
        return getattr(self, self.mixer).rotated(h, schedule, ctx.within(self.mixer))

    def write_attention(self, z: Float[Array, "t h k"], ctx: Context) -> Float[Array, "t d"]:
        """What attention adds to the stream, biases included, from what enters the output projection."""
        written, norm = getattr(self, self.mixer).project(z), self.attention_norms[1]
        return written if norm is None else getattr(self, norm)(written, ctx.within(norm))

    def write_heads(self, z: Float[Array, "t h k"], ctx: Context) -> Float[Array, "t h d"]:
        """What each query head alone adds to the stream, from what enters the output projection.

        The block must have no biases, here and in the next two methods; `ctx` replays its frozen factors.
        """
        written, norm = getattr(self, self.mixer).write_heads(z), self.attention_norms[1]
        return written if norm is None else getattr(self, norm)(written, ctx.within(norm))

    def pull_values(self, gradients: Float[Array, "t h k"], ctx: Context) -> Float[Array, "t h k"]:
        """The gradient in the projection of each head's own values: see `jaxlin.nn.attention.HeadMixer`."""
        return getattr(self, self.mixer).pull_values(gradients, ctx.within(self.mixer))

    def read_heads(self, gradients: Float[Array, "t h k"], ctx: Context) -> Float[Array, "t h d"]:
        """The gradient in the stream through the values of each query head, from what `pull_values` gives."""
        read, norm = getattr(self, self.mixer).read_heads(gradients, ctx.within(self.mixer)), self.attention_norms[0]
        if norm is None:
            return read
        return jax.linear_transpose(lambda x: getattr(self, norm)(x, ctx.within(norm)), read)(read)[0]


class PreNorm(Block):
    """A norm before attention and one before the MLP.

    Args:
        config: the config of the model.
        norm: makes each norm.
        attention: called as ``attention(x, schedule, ctx)``.
        mlp: called as ``mlp(x, ctx)``.
    """

    attention_norms = "input_layernorm", None

    def __init__(self, config: Config, norm: MakeNorm, attention: Any, mlp: Any) -> None:
        self.input_layernorm = norm(config.hidden_size)
        setattr(self, self.mixer, attention)
        self.post_attention_layernorm = norm(config.hidden_size)
        self.mlp = mlp

    def __call__(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "q *b d"]:
        """The residual stream after the block."""
        x = ctx.hook("resid_pre", x)
        h = self.input_layernorm(ctx.hook(InnerSite.ATTN_IN, x), ctx.within("input_layernorm"))
        attention = getattr(self, self.mixer)
        attn = ctx.hook("attn_out", attention(h, schedule, ctx.within(self.mixer)))
        x = ctx.hook("resid_mid", add_to_stream(x, attn))
        mlp = ctx.hook("mlp_out", self.feed_forward(ctx.hook(InnerSite.MLP_IN, x), ctx))
        return ctx.hook("resid_post", add_to_stream(x, mlp))

    def feed_forward(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the MLP adds to the stream `x`."""
        h = self.post_attention_layernorm(x, ctx.within("post_attention_layernorm"))
        return self.mlp(h, ctx.within("mlp"))


class LinearPreNorm(PreNorm):
    """`PreNorm` around linear attention, as hybrids have it beside `PreNorm` around softmax attention."""

    mixer: ClassVar[str] = "linear_attn"


class Sandwich(Block):
    """Norms before and after attention, and before and after the MLP.

    Args:
        config, norm, attention, mlp: as of `PreNorm`.
        post_norm: makes the norms after attention and after the MLP; by default as the others.
    """

    attention_norms = "input_layernorm", "post_attention_layernorm"

    def __init__(
        self, config: Config, norm: MakeNorm, attention: Any, mlp: Any, *, post_norm: MakeNorm | None = None
    ) -> None:
        d, post_norm = config.hidden_size, post_norm or norm
        self.input_layernorm, self.post_attention_layernorm = norm(d), post_norm(d)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(d), post_norm(d)
        self.self_attn, self.mlp = attention, mlp

    def __call__(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "q *b d"]:
        """The residual stream after the block."""
        x = ctx.hook("resid_pre", x)
        h = self.self_attn(self.attention_input(ctx.hook(InnerSite.ATTN_IN, x), ctx), schedule, ctx.within("self_attn"))
        attn = ctx.hook("attn_out", self.post_attention_layernorm(h, ctx.within("post_attention_layernorm")))
        x = ctx.hook("resid_mid", add_to_stream(x, attn))
        mlp = ctx.hook("mlp_out", self.feed_forward(ctx.hook(InnerSite.MLP_IN, x), ctx))
        return ctx.hook("resid_post", self.leave(add_to_stream(x, mlp), schedule, ctx))

    def attention_input(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What attention reads of the stream `x`."""
        return self.input_layernorm(x, ctx.within("input_layernorm"))

    def feed_forward(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the MLP adds to the stream `x`."""
        h = self.pre_feedforward_layernorm(x, ctx.within("pre_feedforward_layernorm"))
        h = self.mlp(h, ctx.within("mlp"))
        return self.post_feedforward_layernorm(h, ctx.within("post_feedforward_layernorm"))

    def leave(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "t *b d"]:
        """The stream after the block, from that after the MLP: the same, unless a family changes it."""
        return x


class PostNorm(Block):
    """A norm after attention and one after the MLP. Arguments are those of `PreNorm`."""

    attention_norms = None, "post_attention_layernorm"

    def __init__(self, config: Config, norm: MakeNorm, attention: Any, mlp: Any) -> None:
        self.self_attn = attention
        self.post_attention_layernorm = norm(config.hidden_size)
        self.mlp = mlp
        self.post_feedforward_layernorm = norm(config.hidden_size)

    def __call__(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "q *b d"]:
        """The residual stream after the block."""
        x = ctx.hook("resid_pre", x)
        h = self.self_attn(ctx.hook(InnerSite.ATTN_IN, x), schedule, ctx.within("self_attn"))
        attn = ctx.hook("attn_out", self.post_attention_layernorm(h, ctx.within("post_attention_layernorm")))
        x = ctx.hook("resid_mid", add_to_stream(x, attn))
        mlp = ctx.hook("mlp_out", self.feed_forward(ctx.hook(InnerSite.MLP_IN, x), ctx))
        return ctx.hook("resid_post", add_to_stream(x, mlp))

    def feed_forward(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the MLP adds to the stream `x`."""
        h = self.mlp(x, ctx.within("mlp"))
        return self.post_feedforward_layernorm(h, ctx.within("post_feedforward_layernorm"))


class Parallel(Block):
    """Attention and the MLP both read the stream as it entered the block, through one norm or through one each.

    Args:
        config, norm, attention, mlp: as of `PreNorm`.
        norms: 1, or 2 where the MLP has a norm of its own.
    """

    sites: ClassVar[tuple[str, ...]] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    attention_norms = "input_layernorm", None

    def __init__(self, config: Config, norm: MakeNorm, attention: Any, mlp: Any, *, norms: Literal[1, 2] = 1) -> None:
        self.input_layernorm = norm(config.hidden_size)
        self.self_attn = attention
        self.post_attention_layernorm = norm(config.hidden_size) if norms == 2 else None
        self.mlp = mlp

    def __call__(self, x: Float[Array, "t *b d"], schedule: Schedule, ctx: Context) -> Float[Array, "q *b d"]:
        """The residual stream after the block."""
        x = ctx.hook("resid_pre", x)
        h = self.input_layernorm(ctx.hook(InnerSite.ATTN_IN, x), ctx.within("input_layernorm"))
        attn = ctx.hook("attn_out", self.self_attn(h, schedule, ctx.within("self_attn")))
        mlp = ctx.hook("mlp_out", self.feed_forward(ctx.hook(InnerSite.MLP_IN, x), ctx))
        return ctx.hook("resid_post", add_to_stream(add_to_stream(x, attn), mlp))

    def feed_forward(self, x: Float[Array, "t *b d"], ctx: Context) -> Float[Array, "t *b d"]:
        """What the MLP adds to the stream, from `x` as it entered the block."""
        own_norm = self.post_attention_layernorm is not None
        norm = "post_attention_layernorm" if own_norm else "input_layernorm"
        return self.mlp(getattr(self, norm)(x, ctx.within(norm)), ctx.within("mlp"))
