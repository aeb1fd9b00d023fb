"""The context that a block runs in: freeze mode, hooks, cache and way of evaluation, each a piece of its own."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxlin.nn.biases import with_biases
from jaxlin.nn.block_input import BlockInput, SharedValues, shared_site
from jaxlin.nn.freeze_modes import FreezeMode, Plain, Record, RematFactors, Replay
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.hooks import Hooks
from jaxlin.nn.kv_cache import KVCache
from jaxlin.nn.sites import FROZEN, STREAM, InnerSite


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
        edits: the edits of the layer that the model carries, by site (`jaxlin.nn.model_edits`).
        edit_factor: that of what they add in a replay; None without biases.
        changes: what edits have changed in the residual stream, by site.
        unedited: the values before edits, by site.
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
        self.edits: Mapping[str, Callable[[Any], Any]] = {}
        self.edit_factor: Any = None
        self.changes, self.unedited = dict[str, Array](), dict[str, Any]()
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
        """Pass the named `site` with `value`, and return the value that the block continues with.

        The edits of the model come before the hooks; a value that replaces the one at the site is not edited.
        """
        if site in self.edits and site not in self.hooks.replacements:
            if site in FROZEN:
                value = self.edits[site](value)
            else:
                before = value
                self.unedited.setdefault(site, before)
                value = self.mode.edit(f"{self._scope}edit {site}", self.edits[site], value, self.edit_factor)
                if site in STREAM:
                    self.changes[site] = value - before
        return self.hooks.apply(site, value)

    def stream_changes(self) -> tuple[Array, Array]:
        """What the model's edits have changed in the stream up to the end of the block, and after it: see `CHANGES`."""
        zeros = jnp.zeros_like(self.hooks.values["resid_post"])
        within = zeros
        for site in ("resid_pre", "resid_mid"):
            within = within + self.changes.get(site, zeros)
        return within, self.changes.get("resid_post", zeros)

    def with_edits(self, edits: Mapping[str, Callable[[Any], Any]], factor: Any) -> None:
        """Let the block apply these `edits`. One of neurons needs them, so that their matrices are not folded."""
        self.edits, self.edit_factor = edits, factor
        if InnerSite.NEURONS in edits:
            self.evaluation = replace(self.evaluation, fold=False)

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
            recording.with_edits(self.edits, None)
            recording.run(with_biases(block, stored.biases), schedule, stored.inputs)
            self.mode = Replay(recording.mode.factors)
        return BlockInput(block(inputs.stream, schedule, self), self.shared.values)

    @property
    def read_inputs(self) -> BlockInput:
        """What entered the block that has run, without what only later blocks read."""
        stream = self.unedited.get("resid_pre", self.hooks.values["resid_pre"])
        return self.inputs._replace(stream=stream, shared=self.shared.reads)
