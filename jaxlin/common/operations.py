"""The cost of a program, counted from its shapes: the same on every machine and at every load."""

import math
from typing import Any, NamedTuple

NUMBER = 32
"""Operations in whose time a CPU core reads or writes a number: those in float32 for 4 bytes, at 8 for each byte."""


class Cost(NamedTuple):
    r"""The cost of the products of a program, in operations.

    Attributes:
        products: the multiplications and additions, $2 m n k$ for a product of matrices.
        transfers: the time to read both factors of each product and to write it, $32\,(m k + k n + m n)$; a short
            prompt spends most of its time on that.
    """

    products: int
    transfers: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.products + self.transfers


def cost_of(jaxpr: Any) -> Cost:
    """The cost of `jaxpr`. Loops count as often as they run; elementwise work is left out.

    Args:
        jaxpr: a `jax.core.Jaxpr` or a closed one, such as ``jax.jit(f).trace(x).jaxpr``.
    """
    costs = [_cost_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns]
    return Cost(sum(cost.products for cost in costs), sum(cost.transfers for cost in costs))


def _cost_of_equation(equation: Any) -> Cost:
    if equation.primitive.name == "dot_general":
        left, right = (variable.aval.shape for variable in equation.invars)
        result = equation.outvars[0].aval.shape
        (contracted, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(result) * math.prod(left[axis] for axis in contracted)
        return Cost(2 * terms, NUMBER * (math.prod(left) + math.prod(right) + math.prod(result)))
    if equation.primitive.name == "cond":
        return max((cost_of(branch) for branch in equation.params["branches"]), key=lambda cost: cost.total)
    inner = [cost_of(value) for value in equation.params.values() if hasattr(getattr(value, "jaxpr", value), "eqns")]
    times = equation.params.get("length", 1)
    return Cost(times * sum(cost.products for cost in inner), times * sum(cost.transfers for cost in inner))
