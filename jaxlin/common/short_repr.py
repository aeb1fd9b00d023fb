"""How results print: in a line, with the shape of each array in the place of its numbers."""

from dataclasses import fields
from typing import Any


class Brief:
    """A dataclass, made with ``repr=False``, that prints numbers and names as they are and arrays as ``[3, 4]``."""

    def __repr__(self) -> str:
        known: Any = self

        def shown(value: Any) -> str:
            # What JAX puts in the place of a field may have no shape.
            shape = getattr(value, "shape", ())
            return str(list(shape)) if shape else repr(value)

        said = (f"{each.name}={shown(getattr(self, each.name))}" for each in fields(known))
        return f"{type(self).__name__}({', '.join(said)})"
