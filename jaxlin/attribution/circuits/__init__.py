"""Exact circuits: the frozen model as a flow network, with every node and edge on the way to a logit.

`circuit` computes all of them at once. A `Circuit` is conserved at every node, and can be pruned, followed and drawn.
"""

from jaxlin.attribution.circuits.network import Path
from jaxlin.attribution.circuits.result import Circuit, Edge
from jaxlin.attribution.circuits.tracing import circuit

__all__ = ["Circuit", "Edge", "Path", "circuit"]
