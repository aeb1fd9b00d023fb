"""What stands in a field of a pytree."""

from typing import Any

Leaf = Any
"""An array or a number, or what JAX puts in its place: it rebuilds pytrees with tracers, batches and shapes."""
