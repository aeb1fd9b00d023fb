"""`Port`: how checkpoints of one `model_type` become a model."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.nn.decoder import Decoder
from jaxlin.porting.tensor_rows import EXPERT, TensorRows

Names = Mapping[str, str | TensorRows | tuple[str | TensorRows, ...]]
"""The tensor of each parameter; several in a tuple, for the layouts that checkpoints of one model are written in."""


@dataclass(frozen=True)
class Port:
    """How checkpoints of one `model_type` become a model.

    A family file in ``models/`` lists its ports in ``PORTS``, by `model_type`, and `jaxlin.loading.registry` names the
    file. Where a checkpoint's tensors have the names of the parameters, `model` and `translate` are enough.

    Attributes:
        model: the class of the decoder, or a function that chooses it by the config.
        translate: makes the decoder's config from a config.json. It takes every key that can change the output, with
            transformers' default, mostly through `jaxlin.porting.fields`. Keys that it does not take are refused,
            unless they are measured to change nothing.
        names: from the decoder's config, the tensors of those parameters that a checkpoint stores otherwise, by the
            parameter's path without ``layers.``, such as ``"self_attn.o_proj.weight"``. A tensor's name is its name
            within a layer. A `TensorRows` says more: which rows of the tensor, in which order, and whether it is
            transposed; `jaxlin.porting.tensor_rows` has functions for fused projections and for experts. A tuple has
            one place for each layout in use, see `in_layout_of`. Axes of one element, as in the ``[c, 1, k]`` of a
            convolution that is a parameter ``[c, k]``, need no mention.
        joined: from the decoder's config, the tensors of `names` that some files have in parts, by their names within a
            layer: the name of each part, in order, and how many rows it has if it is a parameter. Where it has another
            number the parts are one tensor, cut elsewhere.
        bodies: the prefixes that the names of the decoder's tensors may have; `as_named` finds which one they have.
        layers: what the list of layers is called, with a dot at its end.
        heads: the prefixes that the names of the unembedding's tensors may have.
        left_out: patterns of tensors that the model does not use, and why.
        unread: the same for those that depend on the decoder's config.
    """

    model: Callable[..., Decoder]
    translate: Callable[[ConfigReader], Any]
    names: Callable[[Any], Names] = lambda config: {}
    joined: Callable[[Any], Mapping[str, Mapping[str, int]]] = lambda config: {}
    bodies: tuple[str, ...] = ("model.", "")
    layers: str = "layers."
    heads: tuple[str, ...] = ("lm_head.",)
    left_out: Mapping[str, str] = field(default_factory=dict)
    unread: Callable[[Any], Mapping[str, str]] = lambda config: {}

    def tensor_of(self, config: Any, name: str, layer: int | None = None) -> TensorRows:
        """Where a checkpoint stores the parameter `name`, a path that begins with ``layers.`` for one of a layer.

        Of several places it is the first.
        """
        path = name.removeprefix("layers.")
        rows = places_of(self.names(config).get(path, path))[0]
        if path.startswith("lm_head."):
            return replace(rows, tensor=self.heads[0] + rows.tensor.removeprefix("lm_head."))
        prefix = self.bodies[0] + ("" if layer is None or rows.of_model else f"{self.layers}{layer}.")
        return replace(rows, tensor=prefix + rows.tensor)

    def as_named(self, names: Collection[str], source: str) -> "Port":
        """This port for a checkpoint with tensors of these `names`.

        One architecture has several naming schemes: a file saved from the class without a head lacks ``model.``, and
        wrappers moved their text half from one version of transformers to the next.

        Raises:
            CheckpointError: names of more than one scheme, so that either may be those of the model.
        """
        bodies = [body for body in self.bodies if any(name.startswith(body + self.layers) for name in names)]
        heads = [head for head in self.heads if any(name.startswith(head) for name in names)]
        for prefixes, part in ((bodies, self.layers), (heads, "")):
            if len(prefixes) > 1:
                schemes = " and as ".join(f"{prefix}{part}*" for prefix in prefixes)
                raise CheckpointError(f"{source}: expected the tensors of one model; found some as {schemes}.")
        return replace(self, bodies=(*bodies, *self.bodies)[:1], heads=(*heads, *self.heads)[:1])

    def in_layout_of(self, config: Any, names: Collection[str], source: str) -> "Port":
        """This port, where `as_named`, with one place for each parameter: that of the layout of a checkpoint.

        Experts, for instance, have each a tensor of their own, or all of them are in one.

        Raises:
            CheckpointError: tensors of more than one layout, so that either may be those of the model.
        """
        prefix = re.compile(rf"{re.escape(self.bodies[0] + self.layers)}\d+\.")
        numbers = re.compile(r"(?<=\.experts\.)\d+(?=\.)")
        present = {numbers.sub(EXPERT, name)[match.end() :] for name in names if (match := prefix.match(name))}
        table: dict[str, TensorRows] = {}
        layouts: dict[str, dict[int, str]] = {}
        for path, located in self.names(config).items():
            places = places_of(located)
            used = {i: place.tensor for i, place in enumerate(places) if place.tensor in present}
            table[path] = places[min(used, default=0)]
            if len({place.tensor for place in places}) > 1:
                layouts.setdefault(path.rsplit(".", 2)[0], {}).update(used)
        for tensors in layouts.values():
            if len(tensors) > 1:
                raise CheckpointError(
                    f"{source}: expected the tensors of all layers in one layout; found some as "
                    f"{' and some as '.join(tensors[i] for i in sorted(tensors))}."
                )
        return replace(self, names=lambda config: table)


def places_of(located: str | TensorRows | tuple[str | TensorRows, ...]) -> tuple[TensorRows, ...]:
    """Each of the places of a parameter."""
    places = located if isinstance(located, tuple) else (located,)
    return tuple(place if isinstance(place, TensorRows) else TensorRows(place) for place in places)
