"""The experts of an explanation: what the router of each layer chose, and what that contributes to the logit."""

from dataclasses import dataclass

from jaxlin.attribution.result import Experts
from jaxlin.results import Result


@dataclass(frozen=True, eq=False)
class ChosenExpert(Result):
    """An expert that the token at the position passes through.

    Attributes:
        index: which of the experts of its layer.
        weight: the weight that the router gave it.
        contribution: its direct contribution to the logit.
    """

    index: int
    weight: float
    contribution: float


@dataclass(frozen=True, eq=False)
class RoutedLayer(Result):
    """A layer with a router, at the position.

    Attributes:
        layer: its number.
        chosen: the experts in the order of the router.
        others: the contribution of what every token passes through, as a shared expert, and of the last biases.
    """

    layer: int
    chosen: list[ChosenExpert]
    others: float


def routed_layers(experts: Experts | None) -> list[RoutedLayer]:
    """The layers with a router; none for a model that has no experts."""
    if experts is None:
        return []
    others = experts.bias if experts.shared is None else experts.bias + experts.shared
    rows = zip(experts.layer, experts.index, experts.weight, experts.contribution, others, strict=True)
    return [
        RoutedLayer(
            int(layer),
            [
                ChosenExpert(int(i), float(w), float(value))
                for i, w, value in zip(index, weight, contribution, strict=True)
            ],
            float(other),
        )
        for layer, index, weight, contribution, other in rows
    ]
