"""The memory that a model will take, from its config and headers: no weight is read and nothing is computed."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from jaxlin import plots
from jaxlin.checkpoint.hub import Revision
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.loading.model import checked_dtype
from jaxlin.loading.shapes import shapes_of
from jaxlin.nn.attention import MAX_DENSE_QUERIES
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.quantized import PackedMatrix
from jaxlin.results import Result


class Programs(NamedTuple):
    """Bytes that a process on a CPU comes to hold by compiling, as measured on three sizes of Llama.

    Attributes:
        map: for the programs of a map.
        attribution: for those of an attribution.
    """

    map: int
    attribution: int


DENSE, IN_BLOCKS = Programs(65 * 10**6, 120 * 10**6), Programs(90 * 10**6, 185 * 10**6)
"""Where the pattern of a head is one array, and where it is computed in blocks, whose programs are longer."""


@dataclass(frozen=True, eq=False)
class MemoryPlan(Result):
    """The memory that a local linear map and an attribution take, in bytes except for the first three attributes.

    Attributes:
        parameters: the number of parameters.
        tokens: the length of the prompt.
        block: how many rows of J are computed together.
        weights: the weights, as they are stored.
        frozen: the frozen factors of the prompt.
        forward: the temporary memory of the forward pass that records the frozen factors.
        rows: the temporary memory of a block of rows, and the rows themselves.
        jacobian: the dense J.
        row: the same for a single row.
        programs: what a process holds once it has compiled the programs of a map, about; 0 on an accelerator, whose own
            memory is planned.
        attribution_programs: the same for the programs of an attribution.
    """

    PROPERTIES: ClassVar = ("attribution", "operator", "peak")

    parameters: int
    tokens: int
    block: int
    weights: int
    frozen: int
    forward: int
    rows: int
    jacobian: int
    row: int = 0
    programs: int = 0
    attribution_programs: int = 0

    @property
    def attribution(self) -> int:
        """The peak while an attribution is computed, by one backward pass as a row is."""
        return self.weights + self.frozen + self.attribution_programs + max(self.forward, self.row)

    @property
    def operator(self) -> int:
        """The peak while rows or products are computed and the dense J is not stored."""
        return self.weights + self.frozen + self.programs + max(self.forward, self.rows)

    @property
    def peak(self) -> int:
        """The peak while the dense J is computed and stored."""
        return self.weights + self.frozen + self.programs + max(self.forward, self.rows + self.jacobian)

    def _draw(self, ax: Any) -> None:
        """Bars of the parts and the peaks, in GB."""
        parts = ("weights", "frozen", "forward", "rows", "jacobian", "programs", "attribution", "operator", "peak")
        labels = [*parts[:-3], "peak of an attribution", "peak without a dense J", "peak with a dense J"]
        plots.bars(ax, np.array([getattr(self, part) / 1e9 for part in parts]), labels)
        plots.write(ax, title=f"Memory for {self.tokens} tokens", xlabel="GB")


@checked
def memory_plan(
    name_or_config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    tokens: int,
    dtype: Any = "float32",
    rule: Rule = "gate",
    block: int | None = None,
    memory: int | None = None,
    revision: Revision = None,
    remat: bool = False,
    ignore_config_keys: Sequence[str] = (),
) -> MemoryPlan:
    """The memory that the weights, the frozen factors and a block of rows will take, before any weight is read.

    The programs are compiled for the present device from shapes alone, and the compiler says how much memory they take.
    Whether the unembedding is a matrix of its own is taken from the config: see `jaxlin.loading.unembedding`.

    Args:
        name_or_config: a directory, whose config.json is read, and the headers of its weights if it has any: they say
            which matrices are quantised, in which dtype their scales are, and in which dtype the others are. Or a
            hub id, of which only config.json is read, or the contents of a config.json: then all matrices of linear
            layers that the config does not exclude count as quantised, and the others as of one dtype. Or a ``.gguf``
            file, of which only the header is read.
        tokens: the length of the prompt.
        dtype: the dtype of the computation.
        rule: the freeze rule.
        block: how many rows of J are computed together; None for the default of `LocalMap.jacobian`.
        memory: the available bytes; the block is halved until a block of rows fits beside the weights.
        revision: a branch, tag or commit of a hub id.
        remat: whether the map computes frozen factors again, see `jaxlin.freeze`.
        ignore_config_keys: as in `jaxlin.load`.

    Raises:
        CheckpointError: there is no checkpoint of this name, or the file is damaged.
        ConfigError: no port understands the config.
        JaxlinError: not even one row fits in `memory`; `tokens` or `block` is below 1; there is no such dtype; or it is
            float64 without x64.
    """
    if tokens < 1:
        raise JaxlinError(f"Tokens: expected at least 1; found {tokens}.")
    if block is not None and block < 1:
        raise JaxlinError(f"Block: expected at least 1 row; found {block}.")
    model = shapes_of(name_or_config, revision, checked_dtype(dtype), rule, ignore_config_keys)
    x = jax.eval_shape(type(model).embed, model, jax.ShapeDtypeStruct((tokens,), np.int32))

    def map_at(model: Decoder, x: Any) -> LocalMap:
        return local_map(model, x, remat=remat)

    lmap = jax.eval_shape(map_at, model, x)
    weights, frozen, programs = _nbytes(model), _nbytes(lmap.frozen), _programs(tokens)
    d, itemsize = lmap.shape[0], lmap.output.dtype.itemsize

    def rows_of(count: int) -> int:
        u = jax.ShapeDtypeStruct((count, d), lmap.output.dtype)
        return _temporary(LocalMap.rmatvec, lmap, u) + count * tokens * d * itemsize

    forward, count = _temporary(map_at, model, x), min(block or lmap.default_block, d)
    while True:
        rows = rows_of(count)
        needed = weights + frozen + programs.map + rows
        if memory is None or needed <= memory:
            break
        if count == 1:
            raise JaxlinError(
                f"Memory: expected at least {needed / 1e9:.3f} GB for the weights and one row of J; "
                f"found {memory / 1e9:.3f}."
            )
        count = -(-count // 2)
    matrices = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, PackedMatrix))
    parameters = sum(math.prod(matrix.shape) for matrix in matrices)
    jacobian, row = d * tokens * d * itemsize, rows if count == 1 else rows_of(1)
    return MemoryPlan(parameters, tokens, count, weights, frozen, forward, rows, jacobian, row, *programs)


def _programs(tokens: int) -> Programs:
    if jax.default_backend() != "cpu":
        return Programs(0, 0)
    return DENSE if tokens <= MAX_DENSE_QUERIES else IN_BLOCKS


def _nbytes(tree: Any) -> int:
    return sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in jax.tree.leaves(tree))


def _temporary(function: Any, *shapes: Any) -> int:
    """The bytes that a program takes beside its arguments and results, as the compiler says."""
    analysis: Any = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return analysis.temp_size_in_bytes
