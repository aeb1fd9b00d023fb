"""What a port is: how checkpoints of one `model_type` become a model."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.nn.decoder import Decoder


class TensorRows(NamedTuple):
    """A parameter that a checkpoint keeps as some rows of a larger tensor.

    Attributes:
        tensor: the name of the tensor.
        start: its first row.
        stop: the row after its last.
        total: how many rows the tensor has.
    """

    tensor: str
    start: int
    stop: int
    total: int


def stacked_rows(tensor: str, **parts: int) -> dict[str, TensorRows]:
    """The parameters whose rows make up `tensor`, in order, and how many rows each has."""
    ends = np.cumsum(list(parts.values())).tolist()
    module = tensor.split(".")[0]
    return {
        f"{module}.{name}.weight": TensorRows(tensor, end - rows, end, ends[-1])
        for (name, rows), end in zip(parts.items(), ends, strict=True)
    }


@dataclass(frozen=True)
class Port:
    """How checkpoints of one `model_type` become a model.

    Attributes:
        model: the decoder class.
        translate: config.json to the decoder's config; it consumes every key that can change the output.
        names: what a checkpoint calls a parameter otherwise, by its path without ``layers.``.
        bodies: what may stand before the names of the decoder's tensors; `as_named` finds which does.
        heads: what may stand before those of the unembedding.
        left_out: patterns of tensors that the model does not use, and why.
    """

    model: type[Decoder]
    translate: Callable[[ConfigReader], Any]
    names: Callable[[Any], Mapping[str, str | TensorRows]] = lambda config: {}
    bodies: tuple[str, ...] = ("model.", "")
    heads: tuple[str, ...] = ("lm_head.",)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def tensor_of(self, config: Any, name: str, layer: int | None = None) -> str | TensorRows:
        """What a checkpoint calls the parameter `name`, a path with ``layers.`` for one of a layer."""
        path = name.removeprefix("layers.")
        found = self.names(config).get(path, path)
        if path.startswith("lm_head.") and isinstance(found, str):
            return self.heads[0] + found.removeprefix("lm_head.")
        before = self.bodies[0] + ("" if layer is None else f"layers.{layer}.")
        return before + found if isinstance(found, str) else found._replace(tensor=before + found.tensor)

    def as_named(self, names: Collection[str], source: str) -> "Port":
        """This port for a checkpoint with tensors of these `names`.

        One architecture has several: a file saved from the class without a head lacks ``model.``, and wrappers moved
        their text half from one version of transformers to the next.

        Raises:
            CheckpointError: names of more than one kind, so that either may be the model's.
        """
        bodies = [body for body in self.bodies if any(name.startswith(f"{body}layers.") for name in names)]
        heads = [head for head in self.heads if any(name.startswith(head) for name in names)]
        for several, part in ((bodies, "layers."), (heads, "")):
            if len(several) > 1:
                both = " and as ".join(f"{before}{part}*" for before in several)
                raise CheckpointError(f"{source}: expected the tensors of one model; found some as {both}.")
        return replace(self, bodies=(*bodies, *self.bodies)[:1], heads=(*heads, *self.heads)[:1])
