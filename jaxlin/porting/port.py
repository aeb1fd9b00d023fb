"""`Port`: how checkpoints of one `model_type` become a model."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.nn.decoder import Decoder


class TensorRows(NamedTuple):
    """The tensor, or the rows of a tensor, in which a checkpoint stores a parameter.

    Attributes:
        tensor: the name of the tensor.
        start: its first row that belongs to the parameter.
        stop: the row after the last one; None for all rows.
        total: how many rows the tensor has; None for those of the parameter.
    """

    tensor: str
    start: int = 0
    stop: int | None = None
    total: int | None = None


def stacked_rows(tensor: str, **rows: int) -> dict[str, TensorRows]:
    """The parameters that a checkpoint stores fused in `tensor`, such as ``self_attn.qkv_proj.weight``.

    Args:
        tensor: its name within a layer.
        rows: how many rows each parameter has, in the order in which they are stacked.
    """
    module, stops = tensor.split(".")[0], list(accumulate(rows.values()))
    return {
        f"{module}.{name}.weight": TensorRows(tensor, stop - count, stop, stops[-1])
        for (name, count), stop in zip(rows.items(), stops, strict=True)
    }


@dataclass(frozen=True)
class Port:
    """How checkpoints of one `model_type` become a model.

    A family file in ``models/`` lists its ports in ``PORTS``, by `model_type`, and `jaxlin.loading.registry` names the
    file. Where a checkpoint's tensors have the names of the parameters, `model` and `translate` are enough.

    Attributes:
        model: the class of the decoder.
        translate: makes the decoder's config from a config.json. It takes every key that can change the output, with
            transformers' default, mostly through `jaxlin.porting.fields`. Keys that it does not take are refused,
            unless they are measured to change nothing.
        names: from the decoder's config, the tensors of those parameters that a checkpoint names otherwise, by the
            parameter's path without ``layers.``, such as ``"self_attn.o_proj.weight"``; the tensor's name is its name
            within a layer.
        bodies: the prefixes that the names of the decoder's tensors may have; `as_named` finds which one they have.
        heads: the prefixes that the names of the unembedding's tensors may have.
        left_out: patterns of tensors that the model does not use, and why.
    """

    model: type[Decoder]
    translate: Callable[[ConfigReader], Any]
    names: Callable[[Any], Mapping[str, str | TensorRows]] = lambda config: {}
    bodies: tuple[str, ...] = ("model.", "")
    heads: tuple[str, ...] = ("lm_head.",)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def tensor_of(self, config: Any, name: str, layer: int | None = None) -> TensorRows:
        """Where a checkpoint stores the parameter `name`, a path that begins with ``layers.`` for one of a layer."""
        path = name.removeprefix("layers.")
        located = self.names(config).get(path, path)
        rows = located if isinstance(located, TensorRows) else TensorRows(located)
        if path.startswith("lm_head."):
            return rows._replace(tensor=self.heads[0] + rows.tensor.removeprefix("lm_head."))
        prefix = self.bodies[0] + ("" if layer is None else f"layers.{layer}.")
        return rows._replace(tensor=prefix + rows.tensor)

    def as_named(self, names: Collection[str], source: str) -> "Port":
        """This port for a checkpoint with tensors of these `names`.

        One architecture has several naming schemes: a file saved from the class without a head lacks ``model.``, and
        wrappers moved their text half from one version of transformers to the next.

        Raises:
            CheckpointError: names of more than one scheme, so that either may be those of the model.
        """
        bodies = [body for body in self.bodies if any(name.startswith(f"{body}layers.") for name in names)]
        heads = [head for head in self.heads if any(name.startswith(head) for name in names)]
        for prefixes, part in ((bodies, "layers."), (heads, "")):
            if len(prefixes) > 1:
                schemes = " and as ".join(f"{prefix}{part}*" for prefix in prefixes)
                raise CheckpointError(f"{source}: expected the tensors of one model; found some as {schemes}.")
        return replace(self, bodies=(*bodies, *self.bodies)[:1], heads=(*heads, *self.heads)[:1])
