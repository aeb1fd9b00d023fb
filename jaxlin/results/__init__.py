"""Results that travel: what every result of an analysis has in common.

A result is a frozen dataclass of arrays and plain values, derived from `Result`. It is compared by its values, becomes
a dictionary (`to_dict`), a table (`to_pandas`), a file (`save`, `load`), HTML in a notebook and a plot, and says where
it is from: a `Provenance` has the checkpoint, the prompt, the settings and the versions. The provenance is not part of
the pytree that a result is: it changes no compiled program, and what `jax.tree.map`, `jit` or `vmap` returns has none.
"""

from jaxlin.results.base import Result
from jaxlin.results.files import load
from jaxlin.results.provenance import Provenance, note, traced_to

__all__ = ["Provenance", "Result", "load", "note", "traced_to"]
