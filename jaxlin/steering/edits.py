r"""Edits: functions of the value at a site, as pytrees that go into a compiled step as arguments.

`jaxlin.steering` has the operators; here is what an edit is, and the forward pass that makes them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlin.common.arrays import Leaf
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.arguments import check_model
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.kv_cache import KeysAndValues, KVCache
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.sites import Site, is_integer, place

E = TypeVar("E", bound="Edit")
Where = Literal["all", "new"] | tuple[int, ...]
"""Which positions are edited.

``"all"``: every one. ``"new"``: those that predict the continuation: the last of the prompt and all generated ones,
each of which was the last when it was computed. Or these, counted from the first token of the text.
"""


class SteeringError(JaxlinError):
    """An edit that cannot be made, or not to this model."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Edit:
    """What is done to the value at a site, at each position by itself; strength 0 does nothing.

    An edit of one's own is a subclass, made into a pytree as this is, with the arrays it needs as fields::

        @jax.tree_util.register_dataclass
        @dataclass(frozen=True, kw_only=True, repr=False)
        class Shrink(Edit):
            def __call__(self, h, drive):
                return (1 - self.strength) * h

    Attributes:
        site: where on the residual stream.
        strength: how much; each kind of edit says what it multiplies.
        where: at which positions.
    """

    site: Site = field(metadata={"static": True})
    strength: Leaf = 1.0
    where: Where | str = field(default="all", metadata={"static": True})

    def at_strength(self: E, strength: float) -> E:
        """The same edit at another strength: another argument of the same compiled step."""
        return replace(self, strength=strength)

    def __call__(self, h: Float[Array, "t d"], drive: Float[Array, "t e"]) -> Float[Array, "t d"]:
        """`h` at the site, edited.

        Args:
            h: the value at the positions at hand.
            drive: what `drive` gave at them.
        """
        raise TypeError(f"{type(self).__name__} defines no edit")

    drive_features = 0
    """How many features `drive` gives at a position."""

    def drive(
        self, x: Float[Array, "t d"], positions: Int[Array, " t"], before: Float[Array, " e"]
    ) -> Float[Array, "t e"]:
        """What the edit takes from the input embeddings: nothing, unless a kind of edit says otherwise.

        Args:
            x: the input embeddings of the tokens at hand.
            positions: where they stand.
            before: what came out at the position before the first of them; zeros before a text.
        """
        return jnp.zeros((x.shape[0], 0), x.dtype)

    def vectors(self) -> Mapping[str, Array]:
        """Arrays whose last axis is the residual stream's, by name."""
        return {}

    def __repr__(self) -> str:
        arrays = "".join(f", {name} of shape {jnp.shape(array)}" for name, array in self.vectors().items())
        return f"{type(self).__name__}(site={self.site!r}, strength={self.strength}, where={self.where!r}{arrays})"


def checked(model: Decoder, edits: Sequence[Any]) -> tuple[Edit, ...]:
    """`edits`, if they can be made in `model`.

    Raises:
        SiteError: a site that the model does not have.
        SteeringError: what is no edit, or one for a residual stream of another width.
    """
    width = model.config.hidden_size
    if isinstance(edits, Edit):
        raise SteeringError("Edits: expected a list of them; found one edit alone. Put it in a list.")
    for edit in edits:
        if not isinstance(edit, Edit):
            raise SteeringError(
                f"Edit: expected what jaxlin.steering's add, ablate, swap, paper_equation or paper_code give; "
                f"found {quoted(edit)}."
            )
        checked_where(edit.where)
        for name, array in edit.vectors().items():
            if array.shape[-1] != width:
                raise SteeringError(
                    f"{type(edit).__name__}, {name}: expected {width} features, those of this model's residual stream; "
                    f"found {array.shape[-1]}."
                )
        place(edit.site, model.config.num_hidden_layers, model.sites)
    return tuple(edits)


def checked_where(where: Any) -> Where:
    """`where` as an edit has it: one position or several as a tuple.

    Raises:
        SteeringError: anything else.
    """
    if isinstance(where, str) and where in ("all", "new"):
        return where
    several = isinstance(where, Sequence) and not isinstance(where, str)
    positions: tuple[Any, ...] = tuple(where) if several else (where,)
    if not positions or not all(is_integer(each) and each >= 0 for each in positions):
        raise SteeringError(
            f'Edit, where: expected "all", "new" or positions counted from the first token, as (0, 3); '
            f"found {quoted(where)}."
        )
    return tuple(map(int, positions))


class Past(NamedTuple):
    """What the tokens so far leave to the next.

    Attributes:
        cache: the keys and values of each layer, ``[l, s, n, k]``, one slot a position; None before the first token.
        drives: the drive of each edit at the last position.
    """

    cache: KeysAndValues | None
    drives: tuple[Float[Array, " e"], ...]


def no_past(model: Decoder, edits: Sequence[Edit]) -> Past:
    """What the first token finds."""
    return Past(None, tuple(jnp.zeros(edit.drive_features, model.dtype) for edit in edits))


class Passed(NamedTuple):
    """The tokens at hand, passed through the model.

    Attributes:
        output: the residual stream after the final norm.
        new: the keys and values of these tokens, ``[l, t, n, k]``.
        drives: the drive of each edit.
    """

    output: Float[Array, "t d"]
    new: KeysAndValues
    drives: tuple[Float[Array, "t e"], ...]


def forward(
    model: Decoder,
    x: Float[Array, "t d"],
    schedule: Schedule,
    past: Past,
    edits: Sequence[Edit],
    *,
    start: Int[Array, ""] | int,
    first: Int[Array, ""] | int,
) -> Passed:
    """The edited model at tokens that follow a `past`.

    Args:
        model: the decoder.
        x: the input embeddings of the tokens at hand.
        schedule: of all layers, stacked; the positions in it are not read.
        past: what the tokens before have left.
        edits: what is done, from `checked`; at one site in this order.
        start: the position of the first token at hand.
        first: the first position that an edit of ``where="new"`` is made at.
    """
    depth = model.config.num_hidden_layers
    positions = start + jnp.arange(x.shape[0])
    at = schedule._replace(positions=jnp.broadcast_to(positions[None, :], (depth, x.shape[0])))
    drives = tuple(edit.drive(x, positions, before) for edit, before in zip(edits, past.drives, strict=True))
    steps = [_step(edit, drive, positions, first) for edit, drive in zip(edits, drives, strict=True)]
    places = [place(edit.site, depth, model.sites) for edit in edits]

    def in_block(layer: Array) -> dict[str, Callable[[Array], Array]]:
        by_kind: dict[str, list[tuple[int, Callable[[Array], Array]]]] = {}
        for where, step in zip(places, steps, strict=True):
            if not where.final:
                # The stream before a block is that after the one before it, and past the last there is no block.
                after = not where.inside and where.layer > 0
                kind, index = ("resid_post", where.layer - 1) if after else (where.kind, where.layer)
                by_kind.setdefault(kind, []).append((index, step))

        def edited(chosen: list[tuple[int, Callable[[Array], Array]]]) -> Callable[[Array], Array]:
            def through(value: Array) -> Array:
                for index, step in chosen:
                    value = jax.lax.cond(layer == index, step, lambda same: same, value)
                return value

            return through

        return {kind: edited(chosen) for kind, chosen in by_kind.items()}

    stream, new = model.scan(
        x,
        lambda row: Context(hooks=Hooks(edits=in_block(row[0])), cache=KVCache(row[1], start)),
        (jnp.arange(depth), past.cache),
        schedule=at,
        collect=lambda ctx: ctx.cache.new,
    )
    output = model.norm(stream, Context())
    for where, step in zip(places, steps, strict=True):
        if where.final:
            output = step(output)
    return Passed(output, new, drives)


def _step(
    edit: Edit, drive: Float[Array, "t e"], positions: Int[Array, " t"], first: Int[Array, ""] | int
) -> Callable[[Array], Array]:
    if edit.where == "all":
        return lambda value: edit(value, drive)
    chosen = positions >= first if edit.where == "new" else jnp.isin(positions, jnp.asarray(edit.where))
    return lambda value: jnp.where(chosen[:, None], edit(value, drive), value)


def edited(model: Decoder, x: Float[Array, "t d"], edits: Sequence[Any], *, prompt: int | None = None) -> Array:
    """The residual stream after the final norm, ``[t, d]``, of `model` with `edits`, in one pass and without a cache.

    Args:
        model: any decoder.
        x: the input embeddings.
        edits: what is done.
        prompt: how many of the tokens are the prompt, for edits of ``where="new"``; all unless given.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: a site that the model does not have.
        SteeringError: what is no edit, one for a residual stream of another width, or one at a position past the last.
    """
    check_model(model)
    model.check_embeddings(x)
    tokens, known = x.shape[0], checked(model, edits)
    for edit in known:
        if isinstance(edit.where, tuple) and max(edit.where) >= tokens:
            raise SteeringError(f"Edit, where: expected positions in 0..{tokens - 1}; found {max(edit.where)}.")
    first = (tokens if prompt is None else prompt) - 1
    return whole(model, x, schedule_at(model, tokens), known, first)


@jax.jit
def whole(
    model: Decoder,
    x: Float[Array, "t d"],
    schedule: Schedule,
    edits: tuple[Edit, ...],
    first: Int[Array, ""],
) -> Float[Array, "t d"]:
    """The output of `forward` for a text from its first token on."""
    return forward(model, x, schedule, no_past(model, edits), edits, start=0, first=first).output


def schedule_at(model: Decoder, tokens: int) -> Schedule:
    """The schedule of a text of `tokens`, for `forward`: of one shape whatever their number."""
    schedule = model.schedule(tokens)
    return schedule._replace(positions=schedule.positions[:, :1])
