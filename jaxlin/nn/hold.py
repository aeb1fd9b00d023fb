r"""``hold``: nonlinear factors are computed through one function, and what that function does is the mode.

At one input $x$ each nonlinearity of a decoder is $A(x)\,x$: an attention pattern, an inverse norm, a gate, times
something linear in $x$. The layers write every such factor as ``hold(name, compute)``:

===========  ==========================================  =======================================================
mode         ``hold(name, compute)``                     what the model then is
===========  ==========================================  =======================================================
`Hold`       ``compute()``                               the ordinary model, with its ordinary Jacobian
`Detach`     ``stop_gradient(compute())``                the same values; its Jacobian is the local linear map
`Record`     ``compute()``, and the value is kept        the ordinary model, and every $A(x)$ beside it
`Replay`     the kept value; ``compute`` is never run    a function that is truly linear in its input and biases
`Cached`     ``compute()``, on top of earlier tokens     the ordinary model, at the newest tokens of a text
===========  ==========================================  =======================================================

Source: James R. Golden, "Large Language Models are Locally Linear Mappings", arXiv 2505.24293.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from jaxlin.nn.biases import with_biases

Rule = Literal["gate", "up", "half"]
"""Which factor of a gated MLP ``act(g) * u`` is held.

``"gate"`` holds ``act(g)`` and is linear in ``u``; ``"up"`` holds ``u * act(g) / g`` and is linear in ``g``; ``"half"``
is the mean of the two. All three reconstruct the output exactly: the local linear map is not unique.
"""

RULES: tuple[Rule, ...] = ("gate", "up", "half")


class Hold:
    """The plain mode, and the sites a block passes on its way.

    A site is a named place on the residual stream: ``resid_pre``, ``attn_out``, ``resid_mid``, ``mlp_out`` and
    ``resid_post`` in every block. There, `probes` are added (a zero probe changes nothing, and the derivative with
    respect to it is the map from that site), `replacements` stand in for the value, and `edits` are functions of it.
    Two more sites lie within: the query ``heads``, ``[t, h, k]``, before the output projection mixes them, and the
    hidden ``neurons`` of the MLP, ``[t, f]``, before the last projection.

    Attributes:
        rule: the freeze rule of gated MLPs.
        queries: at how many of the last positions the block's output is asked for; 0 for all.
        fold: whether an MLP without biases multiplies its held matrices together before they meet the stream, see
            `jaxlin.nn.layers.folded`; only a replay can.
        fold_derivative: whether the derivative of an MLP does: its value is computed as ever.
        sites: the value seen at each site so far, by kind.
    """

    fold = False

    def __init__(
        self,
        rule: Rule = "gate",
        *,
        probes: Mapping[str, Array] | None = None,
        replacements: Mapping[str, Array] | None = None,
        edits: Mapping[str, Callable[[Array], Array]] | None = None,
        queries: int = 0,
        fold_derivative: bool = False,
    ) -> None:
        self.rule: Rule = rule
        self.queries, self.fold_derivative = queries, fold_derivative
        self.probes = probes or {}
        self.replacements = replacements or {}
        self.edits = edits or {}
        self.sites: dict[str, Array] = {}
        self._scope = ""

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """The nonlinear factor `name`: an array, or a pytree of arrays."""
        return self._hold(self._scope + name, compute)

    def _hold(self, name: str, compute: Callable[[], Any]) -> Any:
        return compute()

    def enter(self, block: Any, at: Any) -> None:
        """`block`, with its schedule `at`, is about to be run under this hold."""

    def kept(self, name: str) -> Any:
        """The nonlinear factor `name` of a replay."""

        def missing() -> Any:
            raise TypeError(f"{type(self).__name__} keeps no {name}")

        return self(name, missing)

    def past(self, name: str, new: Float[Array, "t *b n k"]) -> Float[Array, "s *b n k"]:
        """Keys or values of the tokens at hand; what comes back are those of all tokens that these may attend to."""
        return new

    def within(self, part: str) -> "Hold":
        """The same hold, for a part of the block: names below it are prefixed with ``part.``."""
        inner = copy.copy(self)
        inner._scope = f"{self._scope}{part}."
        return inner

    def site(self, kind: str, value: Float[Array, "t *d"]) -> Float[Array, "u *d"]:
        """Pass the site `kind` with `value`; what comes back is what the block goes on with."""
        value = self.replacements.get(kind, value)
        if kind in self.probes:
            value = value + self.probes[kind]
        if kind in self.edits:
            value = self.edits[kind](value)
        self.sites[kind] = value
        return value


class Detach(Hold):
    """Every nonlinear factor is a constant to differentiation."""

    def _hold(self, name: str, compute: Callable[[], Any]) -> Any:
        return jax.lax.stop_gradient(compute())


class Record(Hold):
    """The plain mode that keeps every factor in `values`; they are differentiable in the input."""

    def __init__(self, rule: Rule = "gate", **sites: Any) -> None:
        super().__init__(rule, **sites)
        self.values: dict[str, Any] = {}

    def _hold(self, name: str, compute: Callable[[], Any]) -> Any:
        self.values[name] = super()._hold(name, compute)
        return self.values[name]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recomputed:
    """What stands in for the factors of a block that are computed again whenever they are needed.

    Attributes:
        stream: the residual stream that entered the block.
        biases: the block with nothing but its additive biases: a held map runs it without them, or with others.
    """

    stream: Any
    biases: Any

    def factors(self, block: Any, at: Any, rule: Rule) -> dict[str, Any]:
        """The factors of `block` at the stream that entered it."""
        hold = Record(rule)
        with_biases(block, self.biases)(self.stream, at, hold)
        return hold.values


class Replay(Hold):
    """Every factor comes from `values`; nothing nonlinear is computed but, where a `Recomputed` stands, the factors."""

    def __init__(
        self, values: Mapping[str, Any] | Recomputed, rule: Rule = "gate", *, fold: bool = False, **sites: Any
    ) -> None:
        super().__init__(rule, **sites)
        self.values: Any = values
        self.fold = fold

    def enter(self, block: Any, at: Any) -> None:
        """Compute the factors of `block` again where they were not kept."""
        if isinstance(self.values, Recomputed):
            self.values = self.values.factors(block, at, self.rule)

    def _hold(self, name: str, compute: Callable[[], Any]) -> Any:
        return self.values[name]


class Cached(Hold):
    """The plain mode for tokens that continue a text: keys and values of the tokens before them come from a cache.

    The cache is not written to. What is new in it is kept in `new`, for the caller to write.

    Args:
        cache: ``"keys"`` and ``"values"``, slot ``s`` for the token at position ``s``; empty for tokens that begin
            a text.
        start: the position of the first token at hand.
        rule: as in `Hold`.
        sites: as in `Hold`.
    """

    def __init__(self, cache: Mapping[str, Array], start: Array | int, rule: Rule = "gate", **sites: Any) -> None:
        super().__init__(rule, **sites)
        self.cache, self.start = cache, start
        self.new: dict[str, Array] = {}

    def past(self, name: str, new: Float[Array, "t n k"]) -> Float[Array, "s n k"]:
        """The slots of `name`, the new ones filled; those past them hold anything and are never attended to."""
        self.new[name] = new
        if name not in self.cache:
            return new
        return jax.lax.dynamic_update_slice_in_dim(self.cache[name], new, self.start, axis=0)
