"""The context that a block runs in: freeze mode, hooks, cache and way of evaluation, each a piece of its own."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from jaxlin.nn.biases import with_biases
from jaxlin.nn.block_input import BlockInput, SharedValues, shared_site
from jaxlin.nn.freeze_modes import FreezeMode, Plain, Record, RematFactors, Replay
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.kv_cache import KVCache


@dataclass(frozen=True)
class Evaluation:
    """How a block is evaluated. No choice changes its result, except which positions it has.

    Attributes:
        last: at how many of the last positions the block's output is needed; 0 for all.
        fold: whether an MLP multiplies its matrices together before they meet the vectors (`jaxlin.nn.folding.fold`):
            of a replay, its value; otherwise its derivative. The block must have no biases in a replay.
    """

    last: int = 0
    fold: bool = False


class Context:
    """The context of one block, or one layer. Each block gets a new one, which collects what the block records.

    Args:
        mode: what happens to nonlinear factors; by default that of the ordinary model.
        hooks: what happens at named sites.
        cache: the keys and values of earlier tokens.
        evaluation: how the block is evaluated.

    Attributes:
        inputs: what entered the block.
        shared: the keys and values that blocks share.
    """

    def __init__(
        self,
        mode: FreezeMode | None = None,
        hooks: Hooks | None = None,
        *,
        cache: KVCache | None = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.mode = mode or Plain()
        self.hooks = hooks or Hooks()
        self.cache = cache or KVCache()
        self.evaluation = evaluation or Evaluation()
        self.inputs = BlockInput(None)
        self.shared = SharedValues()
        self._scope = ""

    @property
    def is_replay(self) -> bool:
        """Whether frozen factors are replayed."""
        return isinstance(self.mode, Replay)

    @property
    def rule(self) -> Rule:
        """The freeze rule of gated MLPs."""
        return self.mode.rule

    def freeze(self, name: str, compute: Callable[[], Any]) -> Any:
        """The nonlinear factor `name`, of which `compute` gives the value: an array, or a pytree of arrays."""
        return self.mode.freeze(self._scope + name, compute)

    def reconstruct(self, value: Callable[[], Array], linear: Callable[[], Array]) -> Array:
        """The value of a nonlinear function of which frozen factors make a linear one: see `FreezeMode.reconstruct`."""
        return self.mode.reconstruct(value, linear)

    def frozen(self, name: str) -> Any:
        """The nonlinear factor `name` of a replay, where there is no way to compute it."""

        def missing() -> Any:
            raise TypeError(f"{type(self.mode).__name__} has no frozen factor {name}")

        return self.freeze(name, missing)

    def hook(self, site: str, value: Any) -> Any:
        """Pass the named `site` with `value`, and return the value that the block continues with."""
        return self.hooks.apply(site, value)

    def within(self, part: str) -> "Context":
        """The same context for a part of the block: the names of its factors are prefixed with ``part.``."""
        inner = copy.copy(self)
        inner._scope = f"{self._scope}{part}."
        return inner

    def run(self, block: Any, schedule: Any, inputs: BlockInput) -> BlockInput:
        """Run `block` with its `schedule`, and return what enters the next block.

        The factors of a replay that were not stored are computed first.
        """
        shared = {
            kind: own._replace(values=self.hook(shared_site(kind), own.values)) for kind, own in inputs.shared.items()
        }
        self.inputs, self.shared = inputs, SharedValues(shared)
        stored = self.mode.factors
        if isinstance(self.mode, Replay) and isinstance(stored, RematFactors):
            recording = Context(Record(stored.rule))
            recording.run(with_biases(block, stored.biases), schedule, stored.inputs)
            self.mode = Replay(recording.mode.factors)
        return BlockInput(block(inputs.stream, schedule, self), self.shared.values)

    @property
    def read_inputs(self) -> BlockInput:
        """What entered the block that has run, without what only later blocks read."""
        return self.inputs._replace(stream=self.hooks.values["resid_pre"], shared=self.shared.reads)
