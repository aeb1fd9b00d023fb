"""Lenses: the logit lens, the Jacobian lens and its fit, and the exact lens of one prompt."""

from jaxlin.lens.exact import ExactLens, exact
from jaxlin.lens.files import load, save
from jaxlin.lens.fitting import fit
from jaxlin.lens.jacobian_lens import ORDINARY, JacobianLens, merge
from jaxlin.lens.reading import Reading, read

__all__ = ["ORDINARY", "ExactLens", "JacobianLens", "Reading", "exact", "fit", "load", "merge", "read", "save"]
