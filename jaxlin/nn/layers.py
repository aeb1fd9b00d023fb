r"""The layers of a decoder, each written as $A(x)\,x$: nonlinear factors go through `ctx.freeze`, the rest is linear.

Shapes are for one sequence: ``t`` tokens (``s`` for the tokens attended to), ``d`` features, ``h`` query heads, ``n``
key-value heads, ``k`` features a head, ``f`` hidden features of an MLP. A batch is a `jax.vmap`. Linear operations also
take batch axes ``*b`` between the tokens and the features, so that the vectors of a map need no transposition.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.nn.context import Context
from jaxlin.nn.freeze_rules import branch_factors

HIGHEST = jax.lax.Precision.HIGHEST
"""Products of float32 in float32, also on devices whose default is less."""


def product(subscripts: str, *operands: Array) -> Array:
    """`jnp.einsum` in the precision of the model that calls it (`jaxlin.nn.precision`), or in full outside of one."""
    is_set = getattr(jax.config, "jax_default_matmul_precision", None) is not None
    return jnp.einsum(subscripts, *operands, precision=None if is_set else HIGHEST)


def at_least_float32(x: Array) -> Array:
    """`x` in float32, or in its own dtype if that is wider: a cast to float32 would take the digits of float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def add_to_stream(x: Float[Array, "t *b d"], update: Float[Array, "u *b d"]) -> Float[Array, "v *b d"]:
    """`x + update` at the last positions, which both have: attention may have been computed at these alone."""
    positions = min(x.shape[0], update.shape[0])
    return x[-positions:] + update[-positions:]


def rows_for(factor: Array, x: Array) -> Array:
    """The rows of a frozen `factor` at the positions of `x`, which are the last ones, the same for a whole batch."""
    rows = factor[-x.shape[0] :]
    return rows.reshape(rows.shape[0], *(1,) * (x.ndim - rows.ndim), *rows.shape[1:])


def affine(
    x: Float[Array, "*b i"], weight: Float[Array, "o i"], bias: Float[Array, " o"] | None = None
) -> Float[Array, "*b o"]:
    r"""$x \mapsto W x + \beta$; the parameters are widened or narrowed to the dtype of `x`."""
    y = product("...i,oi->...o", x, weight.astype(x.dtype))
    return y if bias is None else y + broadcast_last(bias.astype(x.dtype), y)


def rms_norm(
    x: Float[Array, "*b d"], weight: Float[Array, " d"] | None, eps: float, ctx: Context
) -> Float[Array, "*b d"]:
    r"""$x \mapsto w \odot x / \sqrt{\overline{x^2} + \epsilon}$; the inverse root is frozen. None is a weight of one.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    wide = at_least_float32(x)
    inv_rms = ctx.freeze("inv_rms", lambda: jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps))
    y = (wide * rows_for(inv_rms, x)).astype(x.dtype)
    return y if weight is None else y * broadcast_last(weight.astype(x.dtype), x)


def layer_norm(
    x: Float[Array, "*b d"],
    weight: Float[Array, " d"] | None,
    bias: Float[Array, " d"] | None,
    eps: float,
    ctx: Context,
) -> Float[Array, "*b d"]:
    r"""$x \mapsto w \odot (x - \bar x) / \sqrt{\mathrm{var}(x) + \epsilon} + \beta$; the inverse root is frozen.

    Centring is linear.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    wide = at_least_float32(x)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inv_std = ctx.freeze("inv_std", lambda: jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps))
    y = centred * rows_for(inv_std, x)
    if weight is not None:
        y = y * broadcast_last(weight.astype(y.dtype), y)
    if bias is not None:
        y = y + broadcast_last(bias.astype(y.dtype), y)
    return y.astype(x.dtype)


def softcap(z: Float[Array, "*b"], cap: float, ctx: Context) -> Float[Array, "*b"]:
    r"""$z \mapsto c \tanh(z / c)$ as $z$ times a frozen ratio, which is 1 at 0."""

    def ratio() -> Array:
        y = z / cap
        safe = jnp.where(y == 0, 1, y)
        return jnp.where(y == 0, 1, jnp.tanh(safe) / safe)

    return z * ctx.freeze("softcap", ratio)


def rope(
    x: Float[Array, "t h k"], inv_freq: Float[Array, " r"], scale: Float[Array, ""], positions: Int[Array, " t"]
) -> Float[Array, "t h k"]:
    r"""Rotate the first $2r$ features of each head by the angles $p\,\omega_i$; the others stay.

    Feature $i$ forms a pair with feature $i + r$, as in transformers' `rotate_half`. `scale` multiplies cosine and sine
    (YaRN's attention factor). Source: Su et al., "RoFormer", 2021.
    """
    r = inv_freq.shape[0]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    angle = positions.astype(wide)[:, None, None] * inv_freq.astype(wide)[None, None, :]
    cos, sin = (jnp.cos(angle) * scale).astype(x.dtype), (jnp.sin(angle) * scale).astype(x.dtype)
    left, right, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)


def query_growth(
    positions: Int[Array, " t"], rate: float, length: int, like: Float[Array, "t h k"]
) -> Float[Array, "t 1 1"]:
    r"""$1 + \beta \ln(1 + \lfloor p / p_0 \rfloor)$: the factor of queries that grow with their position.

    Far keys then do not lose their weight in long prompts. `rate` is $\beta$, `length` is $p_0$, in tokens. Source:
    Nakanishi, "Scalable-Softmax Is Superior for Attention", 2025.
    """
    steps = (positions // length).astype(jnp.promote_types(like.dtype, jnp.float32))
    return (1 + rate * jnp.log1p(steps)).astype(like.dtype)[:, None, None]


SLOPES: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.sigmoid,
    "gelu": lambda x: 0.5 * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: 0.5 * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: jax.nn.sigmoid(1.702 * x),
    "relu": lambda x: (x > 0).astype(x.dtype),
    "relu2": jax.nn.relu,
    "leaky_relu": lambda x: jnp.where(x > 0, 1, 0.01).astype(x.dtype),
    "hardswish": lambda x: jax.nn.relu6(x + 3) / 6,
    "mish": lambda x: jnp.tanh(jax.nn.softplus(x)),
    "tanh": lambda x: jnp.where(x == 0, 1, jnp.tanh(x) / jnp.where(x == 0, 1, x)),
}
r"""$\mathrm{act}(x)/x$ of each activation, in closed form; only that of tanh divides, and so treats 0 apart."""


def ungated(x: Float[Array, "t *b f"], act: str, ctx: Context) -> Float[Array, "t *b f"]:
    r"""$\mathrm{act}(x)$ as $x$ times its slope $\mathrm{act}(x) / x$, which is frozen."""
    return x * rows_for(ctx.freeze("slope", lambda: SLOPES[act](x)), x)


def gated(
    gate: Callable[[], Float[Array, "t *b f"]],
    up: Callable[[], Float[Array, "t *b f"]],
    act: str | Callable[[Array, Array], Array],
    ctx: Context,
    weights: Callable[[], Float[Array, "t f"]] | None = None,
) -> Float[Array, "t *b f"]:
    r"""$\mathrm{act}(g) \odot u$, linear in the branches that the freeze rule chooses (`jaxlin.nn.freeze_rules`).

    `gate` and `up` compute the branches $g$ and $u$, and are called only where the mode needs them. So are `weights`,
    a further factor, which is frozen with the slope. `act` is a key of `SLOPES`, or a function of both branches for the
    slope of another function of both: the value over $g \odot u$. Source: Shazeer, "GLU Variants Improve Transformer",
    2020.
    """
    gate, up = functools.cache(gate), functools.cache(up)

    @functools.cache
    def slope() -> Float[Array, "t *b f"]:
        ratio = SLOPES[act](gate()) if isinstance(act, str) else act(gate(), up())
        return ratio if weights is None else ratio * weights()

    frozen = ctx.freeze("branches", lambda: branch_factors(ctx.rule, gate(), up(), slope()))

    def linear() -> Float[Array, "t *b f"]:
        return functools.reduce(jnp.add, [rows_for(a, z) * z for a, z in frozen.paired(gate, up)])

    return ctx.reconstruct(lambda: gate() * slope() * up(), linear)


def broadcast_last(vector: Float[Array, " d"], like: Array) -> Array:
    """`vector` with leading axes of size one, because JAX may be set to refuse arrays of different ranks."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)
