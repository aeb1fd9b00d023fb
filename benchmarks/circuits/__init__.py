"""Circuits: what `jaxlin.circuit` costs."""
