"""Activations: the values of a model at named sites, read.

`record` runs a model once and returns them, stacked over its layers.
"""

from jaxlin.activations.recording import Activations, record
from jaxlin.activations.site_names import SITES, parse_site

__all__ = ["SITES", "Activations", "parse_site", "record"]
