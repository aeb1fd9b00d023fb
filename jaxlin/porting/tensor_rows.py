"""`TensorRows`: where a checkpoint stores a parameter, if not in a tensor of its own name and shape."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from jaxtyping import Int

from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.nn.config import Config

EXPERT = "{expert}"
"""What stands for the number of an expert in the name of a tensor."""


@dataclass(frozen=True, eq=False)
class TensorRows:
    """The tensor, or the rows of a tensor, in which a checkpoint stores a parameter.

    Of experts, whose parameters are ``[E, out, in]``, each has a tensor of its own if the name has ``{expert}`` in it;
    otherwise one tensor has a leading axis of experts, and the rest is said of each.

    Attributes:
        tensor: the name of the tensor within a layer.
        rows: the rows that belong to the parameter, in its order: a slice; or their indices, or a function of nothing
            that gives them, which is called once the tensor has been found to have as many rows as it should: a config
            may lie about any size.
        total: how many rows the tensor has; None for those of the parameter.
        transposed: whether the tensor is ``[in, out]``, so that its columns are the rows of the parameter. Packed
            weights are ``[out, in]`` in every format, whatever the module that they were made from.
        constant: every element of a parameter that no checkpoint stores; there is then no tensor.
        of_model: whether the tensor of a layer's parameter is named beside the layers, not within one.
    """

    tensor: str
    rows: slice | Int[np.ndarray, " n"] | Callable[[], Int[np.ndarray, " n"]] = field(
        default_factory=lambda: slice(None)
    )
    total: int | None = None
    transposed: bool = False
    constant: float | None = None
    of_model: bool = False

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor, without an axis of experts, from that of the parameter."""
        stored = (self.total or shape[0], *shape[1:])
        return stored[::-1] if self.transposed else stored

    def span(self, count: int, start: int, stop: int) -> tuple[slice, Int[np.ndarray, " n"] | None]:
        """The part of the tensor's rows to read for some rows of the parameter.

        Args:
            count: how many rows the parameter has.
            start: the first of its rows to read.
            stop: the row after the last.

        Returns:
            A slice of the tensor's rows, and the indices of those that are wanted within it; None for all of it.
        """
        if isinstance(self.rows, slice):
            run = range(self.total or count)[self.rows][start:stop]
            return slice(run.start, run.stop, run.step), None
        rows = self.indices(count)[start:stop]
        first = int(rows.min()) if len(rows) else 0
        return slice(first, int(rows.max()) + 1 if len(rows) else 0), rows - first

    def indices(self, count: int) -> Int[np.ndarray, " n"]:
        """The tensor's rows that belong to the parameter, which has `count`."""
        rows = self.rows() if callable(self.rows) else self.rows
        return np.arange(self.total or count)[rows] if isinstance(rows, slice) else rows


@checked
def part_rows(heads: int, *sizes: int) -> list[Int[np.ndarray, " n"]]:
    """The rows of each part of a tensor in which the parts of a head follow each other, head by head.

    Args:
        heads: how many heads; 1 where the parts are whole and follow each other.
        sizes: how many rows each part of a head has.
    """
    rows = np.arange(heads * sum(sizes)).reshape(heads, -1)
    return [rows[:, stop - size : stop].ravel() for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def halves_of_pairs(features: int) -> Int[np.ndarray, " n"]:
    """The rows of a head whose rotated pairs are neighbours, in the order of its two halves: 0, 2, …, then 1, 3, …."""
    return np.arange(features).reshape(-1, 2).T.ravel()


@checked
def paired_rows(config: Config) -> dict[str, TensorRows]:
    """Queries and keys of a checkpoint in which the two features that rotate together are neighbouring rows."""
    k, order = config.head_dim, halves_of_pairs(config.head_dim)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = {f"self_attn.{projection}.{kind}": n for projection, n in heads.items() for kind in ("weight", "bias")}

    def rows(heads: int) -> Int[np.ndarray, " n"]:
        return (k * np.arange(heads)[:, None] + order[None, :]).ravel()

    return {name: TensorRows(name, functools.partial(rows, n)) for name, n in names.items()}


@checked
def stacked_rows(
    tensor: str, *, heads: int = 1, module: str | None = None, transposed: bool = False, **sizes: int
) -> dict[str, TensorRows]:
    """The parameters that a checkpoint stores fused in `tensor`, such as ``self_attn.qkv_proj.weight``.

    Args:
        tensor: its name within a layer; that of a bias gives biases.
        heads: how many times the parts follow each other: once, or once in each head.
        module: the module of the parameters; by default that of the tensor.
        transposed: whether the tensor is ``[in, out]``.
        sizes: how many rows of a head each parameter has, in the order in which they are stacked.
    """
    stored_module, kind = tensor.split(".")[0], tensor.rpartition(".")[2]
    stops, total = list(accumulate(sizes.values())), heads * sum(sizes.values())
    runs = [slice(stop - size, stop) for size, stop in zip(sizes.values(), stops, strict=True)]

    def rows(part: int) -> Int[np.ndarray, " n"]:
        return part_rows(heads, *sizes.values())[part]

    is_transposed = transposed and kind == "weight"
    return {
        f"{module or stored_module}.{name}.{kind}": TensorRows(
            tensor, run if heads == 1 else functools.partial(rows, part), total, is_transposed
        )
        for part, (name, run) in enumerate(zip(sizes, runs, strict=True))
    }


@checked
def single_experts(
    module: str, stored: str | None = None, projections: Sequence[str] = ("gate_proj", "up_proj", "down_proj")
) -> dict[str, TensorRows]:
    """The weights of experts that each have tensors of their own, such as ``mlp.experts.7.gate_proj.weight``.

    Args:
        module: the module of the parameters, such as ``mlp.experts``.
        stored: its name in the checkpoint; by default the same.
        projections: the names of gate, up and down in the checkpoint.

    Raises:
        JaxlinError: another number of projections.
    """
    if len(projections) != 3:
        raise JaxlinError(f"Projections: expected the names of gate, up and down; found {quoted(projections)}.")
    names = zip(("gate_proj", "up_proj", "down_proj"), projections, strict=True)
    return {
        f"{module}.{name}.weight": TensorRows(f"{stored or module}.{EXPERT}.{projection}.weight")
        for name, projection in names
    }


@checked
def fused_experts(
    module: str,
    width: int,
    stored: str | None = None,
    *,
    suffix: str = "",
    transposed: bool = False,
    interleaved: bool = False,
    biases: bool = False,
) -> dict[str, TensorRows]:
    """The weights of experts in ``gate_up_proj``, ``[E, 2 f, d]``, and ``down_proj``, ``[E, d, f]``.

    Args:
        module: the module of the parameters, such as ``mlp.experts``.
        width: f, the hidden features of an expert.
        stored: its name in the checkpoint; by default the same.
        suffix: what follows the names of both tensors.
        transposed: whether they are ``[E, d, 2 f]`` and ``[E, f, d]``.
        interleaved: whether gate and up alternate; otherwise all of gate comes first.
        biases: whether there are ``gate_up_proj_bias``, ``[E, 2 f]``, and ``down_proj_bias``, ``[E, d]``, too.
    """
    gate, up = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, width), slice(width, None))
    names = {}
    for kind, end in (("weight", suffix), ("bias", "_bias"))[: 1 + biases]:
        fused, down = (f"{stored or module}.{name}{end}" for name in ("gate_up_proj", "down_proj"))
        columns = transposed and kind == "weight"
        names[f"{module}.gate_proj.{kind}"] = TensorRows(fused, gate, 2 * width, columns)
        names[f"{module}.up_proj.{kind}"] = TensorRows(fused, up, 2 * width, columns)
        names[f"{module}.down_proj.{kind}"] = TensorRows(down, transposed=columns)
    return names


@checked
def either(*layouts: Mapping[str, str | TensorRows]) -> dict[str, tuple[str | TensorRows, ...]]:
    """The places of parameters in each of several layouts, of which a checkpoint has one."""
    paths = dict.fromkeys(path for layout in layouts for path in layout)
    return {path: tuple(layout[path] for layout in layouts if path in layout) for path in paths}
