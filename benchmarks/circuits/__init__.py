"""Circuits: what `jaxlin.circuit` costs, and how well its edges predict what the untouched model does without them."""
