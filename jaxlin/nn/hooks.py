"""Hooks, which read, replace, add to or edit the values at the named sites of a block."""

from collections.abc import Callable, Mapping
from typing import Any


class Hooks:
    """The hooks of one block. At each site they apply in this order: replacement, probe, edit, reader.

    A site is a named value: the residual stream and what is added to it (`jaxlin.nn.sites.Kind`), or a value within
    attention or the MLP (`jaxlin.nn.sites.InnerSite`). Each argument is a dictionary by the name of the site.

    Args:
        replacements: values that stand in for the one that the block has computed.
        probes: values that are added. A probe of zero changes nothing, and the derivative with respect to it is the
            map from its site.
        edits: functions of the value, whose result the block goes on with.
        readers: functions of the value, whose result is stored in `values` in its place.

    Attributes:
        values: the value, or the result of its reader, at each site that the block has passed so far.
    """

    def __init__(
        self,
        *,
        replacements: Mapping[str, Any] | None = None,
        probes: Mapping[str, Any] | None = None,
        edits: Mapping[str, Callable[[Any], Any]] | None = None,
        readers: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        self.replacements = replacements or {}
        self.probes = probes or {}
        self.edits = edits or {}
        self.readers = readers or {}
        self.values: dict[str, Any] = {}

    def apply(self, site: str, value: Any) -> Any:
        """Pass `site` with `value`, and return what the block goes on with."""
        value = self.replacements.get(site, value)
        if site in self.probes:
            value = value + self.probes[site]
        if site in self.edits:
            value = self.edits[site](value)
        self.values[site] = self.readers[site](value) if site in self.readers else value
        return value
