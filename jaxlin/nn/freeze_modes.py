r"""Freeze modes: nonlinear factors are computed through one function, and the mode decides what that function does.

At one input $x$ each nonlinearity of a decoder is $A(x)\,x$: an attention pattern, an inverse norm or a gate, times
something linear in $x$. Layers write every such factor as ``ctx.freeze(name, compute)``:

===========  ==========================================  =======================================================
mode         ``freeze(name, compute)``                   what the model then is
===========  ==========================================  =======================================================
`Plain`      ``compute()``                               the ordinary model, with its ordinary Jacobian
`Detach`     ``stop_gradient(compute())``                the same values; its Jacobian is the local linear map
`Record`     ``compute()``, and stores the result        the ordinary model, and every $A(x)$ beside it
`Replay`     the stored value; ``compute`` is not run    a function that is truly linear in its input and biases
===========  ==========================================  =======================================================

Source: James R. Golden, "Large Language Models are Locally Linear Mappings", arXiv 2505.24293.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array

from jaxlin.nn.freeze_rules import Rule


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RematFactors:
    """The input of a block, in place of its frozen factors: they are computed again whenever they are needed.

    Attributes:
        inputs: what entered the block, as a `jaxlin.nn.block_input.BlockInput`.
        biases: the block with nothing but its additive biases: a map runs the block without them, or with others.
        rule: the freeze rule of gated MLPs.
    """

    inputs: Any
    biases: Any
    rule: Rule = field(metadata={"static": True})


class FreezeMode:
    """What happens to a nonlinear factor.

    Attributes:
        rule: the freeze rule of gated MLPs; the ordinary model and a replay need none.
        factors: the frozen factors of the block at hand by name; only `Record` and `Replay` have any.
    """

    factors: Any

    def __init__(self, rule: Rule = "gate") -> None:
        self.rule: Rule = rule
        self.factors = {}

    def freeze(self, name: str, compute: Callable[[], Any]) -> Any:
        """The nonlinear factor `name`: an array, or a pytree of arrays."""
        return compute()

    def reconstruct(self, value: Callable[[], Array], linear: Callable[[], Array]) -> Array:
        """The value of a nonlinear function of which frozen factors make a linear one.

        Args:
            value: computes it as the ordinary model does.
            linear: computes it as the frozen factors times what stays linear. If it gives another value, the residual
                of the map shows it, because the output of the model is `value`.
        """
        return value()

    def edit(self, name: str, edit: Callable[[Any], Any], value: Any, factor: Any) -> Any:
        """The value that a block goes on with after an `edit` of `value`.

        Args:
            name: the name of the factor that a record stores.
            edit: a function of the value.
            value: the value, an array, or what stands at a site of another kind.
            factor: that of what the edit adds in a replay; None without biases.
        """
        return edit(value)


class Plain(FreezeMode):
    """The ordinary model."""


class Detach(FreezeMode):
    """Every nonlinear factor is a constant to differentiation."""

    def freeze(self, name: str, compute: Callable[[], Any]) -> Any:
        """The factor, computed under `jax.lax.stop_gradient`."""
        return jax.lax.stop_gradient(compute())

    def reconstruct(self, value: Callable[[], Array], linear: Callable[[], Array]) -> Array:
        """The value of the ordinary model, with the derivative of the linear function."""
        return _with_derivative_of(jax.lax.stop_gradient(value()), linear())


class Record(FreezeMode):
    """The ordinary model, which stores every factor in `factors`; they are differentiable in the input."""

    def freeze(self, name: str, compute: Callable[[], Any]) -> Any:
        """The factor, computed and stored."""
        self.factors[name] = compute()
        return self.factors[name]

    def edit(self, name: str, edit: Callable[[Any], Any], value: Any, factor: Any) -> Any:
        """The edited value; the value before the edit is stored."""
        self.factors[name] = value
        return edit(value)


class Replay(FreezeMode):
    """Every factor comes from `factors`, and nothing nonlinear is computed.

    Args:
        factors: the frozen factors by name, or a `RematFactors`, in whose place `jaxlin.nn.context.Context.enter`
            puts the factors before the block runs.
    """

    def __init__(self, factors: Mapping[str, Any] | RematFactors) -> None:
        super().__init__()
        self.factors = factors

    def freeze(self, name: str, compute: Callable[[], Any]) -> Any:
        """The factor that was stored."""
        return self.factors[name]

    def reconstruct(self, value: Callable[[], Array], linear: Callable[[], Array]) -> Array:
        """The linear function."""
        return linear()

    def edit(self, name: str, edit: Callable[[Any], Any], value: Any, factor: Any) -> Any:
        r"""The edit's derivative at the stored value $h_0$, and with biases what it adds: see `jaxlin.nn.model_edits`.

        `value` may have batch axes between the tokens and the features, and fewer tokens, the last ones.
        """
        stored = self.factors[name][-value.shape[0] :]
        edited, derivative = jax.linearize(edit, stored)
        added = edited - derivative(stored)
        batched = derivative
        for _ in range(value.ndim - stored.ndim):
            batched = jax.vmap(batched, in_axes=1, out_axes=1)
        result = batched(value)
        if factor is None:
            return result
        added = added.reshape(added.shape[0], *(1,) * (value.ndim - stored.ndim), *added.shape[1:])
        return result + factor.astype(added.dtype) * added


@jax.custom_jvp
def _with_derivative_of(value: Array, linear: Array) -> Array:
    """`value`, bit for bit, with the derivative of `linear`."""
    return value


@_with_derivative_of.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[1]
