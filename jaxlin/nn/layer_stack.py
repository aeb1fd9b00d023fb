"""`Layers`: the blocks of a decoder, and the scan that runs them."""

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlin.nn.block_input import BlockInput, shared_sites
from jaxlin.nn.context import Context
from jaxlin.nn.layer_scan import scan_layers, values_before
from jaxlin.nn.model_edits import ModelEdits, layer_rows
from jaxlin.nn.precision import Precision, matmul_precision
from jaxlin.nn.prompt import Embeddings, array_of
from jaxlin.nn.schedule import Schedule, moved, same_frequencies, schedules
from jaxlin.nn.sites import Place, is_cut
from jaxlin.nn.stack import LayerIndex, Layout, Stack, layer_of


class Layers(nnx.Module):
    """The blocks of a `jaxlin.nn.Decoder`, whose attributes are described there."""

    Block: ClassVar[Any]
    config: Any
    layers: Any
    precision: Precision
    dtype: str
    edits: ModelEdits | None

    @property
    def layout(self) -> Layout:
        """How the layers are stacked."""
        return Layout.of(self.config.layer_kinds or ("",) * self.config.num_hidden_layers)

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

    @property
    def sharing_layers(self) -> tuple[int, ...]:
        """The layers whose blocks leave values that later blocks read."""
        return tuple(sorted({own for layer, own in enumerate(self.config.value_layers) if own != layer}))

    def direct_factors(self) -> Float[Array, " l"] | None:
        """The factor of what each layer adds to the stream on its direct path to the stream after the last block.

        It is None where that path is no number for each layer; see `jaxlin.attribution.direct_paths`.
        """
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
        stack = (self.layers, schedule, rows, inputs.per_layer, self.edit_rows)
        stop = self.layout.depth if stop is None else stop

        def run(carry: BlockInput, layer: Any) -> tuple[BlockInput, Context]:
            block, own_schedule, row, per_layer, edit_row = layer
            ctx = self.with_own_edits(make_context(row), edit_row, own_schedule)
            return ctx.run(block, own_schedule, carry._replace(per_layer=per_layer)), ctx

        def step(carry: BlockInput, layer: Any) -> tuple[BlockInput, Any]:
            carry, ctx = run(carry, layer)
            return carry, collect(ctx)

        with self.at_precision():
            shared = values_before(self.sharing_layers, len(self.shared_sites), run, inputs, stack)
            carry = inputs._replace(shared=shared, per_layer=None)
            carry, values = scan_layers(self.layout, step, carry, stack, start, stop)
        return carry._replace(per_layer=inputs.per_layer) if isinstance(x, BlockInput) else carry.stream, values

    @property
    def edit_rows(self) -> Any:
        """For each layer its number, and the factor of what its edits add; None in a model that carries no edits."""
        return None if self.edits is None else (layer_rows(self.layout), self.edits.bias)

    def with_own_edits(self, ctx: Context, row: Any, schedule: Schedule) -> Context:
        """`ctx`, with the edits that the model carries for the layer of a row of `edit_rows`."""
        if self.edits is not None:
            ctx.with_edits(self.edits.at(row[0], schedule.positions, self.layout.depth), row[1])
        return ctx

    def block(self, layer: int | Array | LayerIndex, x: Float[Array, "t *b d"] | BlockInput, ctx: Context) -> Any:
        """The residual stream after one block, or all that enters the next, from `x` before it, as in `scan`.

        `layer` is as in `jaxlin.nn.stack.layer_of`.
        """
        inputs = x if isinstance(x, BlockInput) else BlockInput(x)
        stack = self.layers, self.schedule(inputs.stream.shape[0]), inputs.per_layer, self.edit_rows
        block, schedule, per_layer, edit_row = layer_of(stack, layer)
        ctx = self.with_own_edits(ctx, edit_row, schedule)
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
