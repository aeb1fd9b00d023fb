"""The places of components: in a layer, among all that write to the stream, and in the order of the forward pass."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxlin.attribution.circuits.expansion import has_experts, slots, value_layers
from jaxlin.attribution.circuits.flow import Flow
from jaxlin.nn.decoder import Decoder

EMBED = "embed"
"""The name of the embeddings as a component."""


class Places(NamedTuple):
    """How many components of each kind a layer has, in this order; those of the MLP are its experts, then the rest.

    Attributes:
        heads: query heads.
        attn_bias: 1 if the biases of attention are a component.
        mlp: the parts of the MLP.
        mlp_bias: 1 if the biases of experts are a component.
        per_layer: 1 if what adds per-layer embeddings is one.
    """

    heads: int
    attn_bias: int
    mlp: int
    mlp_bias: int
    per_layer: int

    @property
    def writers(self) -> int:
        """The components that write."""
        return sum(self)

    @property
    def readers(self) -> int:
        """The components that read."""
        return self.heads + self.mlp + self.per_layer


@dataclass(frozen=True)
class Component:
    """A part of the network.

    Attributes:
        name: as circuit papers write it: ``"embed"``, ``"a3.h5"``, ``"m3"``, ``"m3.e17"``, ``"a3.bias"``; ``"p3"`` is
            what adds the per-layer embeddings of a layer.
        order: its place in the forward pass.
        reads_at: the place at which it reads what those of smaller numbers have written: its own, but for heads that
            read the values of an earlier layer; -1 of what only writes.
        layer: its layer; 0 for the embeddings.
        head: the number of a head.
        expert: the number of an expert.
        per_layer: whether it adds per-layer embeddings.
    """

    name: str
    order: int
    reads_at: int
    layer: int = 0
    head: int | None = None
    expert: int | None = None
    per_layer: bool = False

    @property
    def reads(self) -> bool:
        """Whether it reads the stream, as heads and MLPs do."""
        return self.reads_at >= 0


def components(model: Decoder, shape: Places) -> list[Component]:
    """The components that a model may have, in the order of the writers; `shape` has the places of a layer."""
    every = [Component(EMBED, 0, -1)]
    for layer, (values, attention, mlp, per_layer) in enumerate(orders(model)):
        every += [Component(f"a{layer}.h{head}", attention, values, layer, head=head) for head in range(shape.heads)]
        every += [Component(f"a{layer}.bias", attention, -1, layer)] * shape.attn_bias
        experts = range(shape.mlp - 1)
        every += [Component(f"m{layer}.e{expert}", mlp, mlp, layer, expert=expert) for expert in experts]
        every += [Component(f"m{layer}", mlp, mlp, layer)]
        every += [Component(f"m{layer}.bias", mlp, -1, layer)] * shape.mlp_bias
        every += [Component(f"p{layer}", per_layer, per_layer, layer, per_layer=True)] * shape.per_layer
    return every


class Order(NamedTuple):
    """The places of a layer's components in the forward pass.

    Attributes:
        values: where its heads read their values.
        attention: where attention writes.
        mlp: where the MLP reads and writes.
        per_layer: where per-layer embeddings are added.
    """

    values: int
    attention: int
    mlp: int
    per_layer: int


def orders(model: Decoder) -> list[Order]:
    """The order of each layer."""
    sequential = "resid_mid" in model.sites  # whether an MLP reads what the attention of its layer adds
    return [
        Order(3 * int(own) + 1, 3 * layer + 1, 3 * layer + 1 + sequential, 3 * layer + 3)
        for layer, own in enumerate(value_layers(model))
    ]


def places(model: Decoder, flow: Flow) -> Places:
    """The places of a layer."""
    experts = model.config.num_experts if has_experts(model) else 0
    biases = len(flow.biases)
    return Places(flow.heads.shape[1], min(biases, 1), experts + 1, max(biases - 1, 0), len(flow.per_layer))


def part_numbers(model: Decoder, tokens: int, routes: Any) -> Int[Array, "l t p"]:
    """The number of each part of an MLP among the components of its layer's MLP; past the last if there is none."""
    depth = model.layout.depth
    if not has_experts(model):
        return jnp.zeros((depth, tokens, 1), jnp.int32)
    experts, k = model.config.num_experts, slots(model) - 1

    def numbers(layers: Any, route: Any) -> Int[Array, "l t p"]:
        rest = jnp.full((*layers.shape, tokens, 1), experts, jnp.int32)
        routed = jnp.full((*layers.shape, tokens, k), experts + 1, jnp.int32) if route is None else route.experts
        return jnp.concatenate([routed, rest], axis=-1)

    return model.layout.map(numbers, jnp.arange(depth), routes)


def component_numbers(shape: Places, parts: Int[Array, "l t p"]) -> tuple[Int[Array, "a t"], Int[Array, "b t"]]:
    """The numbers of what each token has of writers and readers, among those of all layers; past the last for none."""
    depth, tokens, _ = parts.shape
    parts = jnp.swapaxes(parts, 1, 2)
    layers = jnp.arange(depth)[:, None, None]

    def in_order(count: int) -> tuple[int, Int[Array, "l _ t"]]:
        return count, jnp.broadcast_to(jnp.arange(count)[None, :, None], (depth, count, tokens))

    def numbers(*kinds: tuple[int, Int[Array, "l _ t"]], first: int) -> Int[Array, "_ t"]:
        """The numbers of components of some kinds, each with how many there are and their numbers in the kind."""
        width, before, rows = sum(count for count, _ in kinds), 0, []
        for count, own in kinds:
            rows.append(jnp.where(own < count, first + layers * width + before + own, first + depth * width))
            before += count
        return jnp.concatenate(rows, axis=1).reshape(-1, tokens)

    heads, mlp, per_layer = in_order(shape.heads), (shape.mlp, parts), in_order(shape.per_layer)
    writers = numbers(heads, in_order(shape.attn_bias), mlp, in_order(shape.mlp_bias), per_layer, first=1)
    embed = jnp.zeros((1, tokens), writers.dtype)
    return jnp.concatenate([embed, writers]), numbers(heads, mlp, per_layer, first=0)
