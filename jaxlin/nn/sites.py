"""Sites: named values on the way through a model, as users write them and as the scan over blocks needs them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from jaxlin.common.annotations import is_integer
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted

Kind = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "per_layer_out", "resid_post"]
Site = str | tuple[str, int]
"""``"embed"``, ``"final"`` (after the final norm), or ``(kind, layer)``; a negative layer counts from the last."""

ORDER: tuple[Kind, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "per_layer_out", "resid_post")
"""The kinds of sites in the order in which a block passes them."""

KINDS: tuple[Kind, ...] = tuple(kind for kind in ORDER if kind != "per_layer_out")
"""Those that most blocks have: the others add no per-layer embeddings."""

ADDED: tuple[Kind, ...] = ("attn_out", "mlp_out", "per_layer_out")
"""Those of what a block adds to the stream, which passes beside them."""


class InnerSite(StrEnum):
    """Named values within attention and the MLP, which hooks can read and change.

    Attributes:
        QUERIES: the queries, ``[t, h, k]``, as they enter the scores: after norms, rotation and growth.
        KEYS: the keys, ``[t, n, k]``, likewise.
        PATTERN: the attention pattern, before it mixes the values.
        VALUES: the values of attention, ``[t, n, k]``, before the pattern mixes them.
        HEADS: the output of each query head, ``[t, h, k]``, before the output projection mixes the heads.
        GATED_HEADS: the same after the gate of each head, if attention has one: what the output projection mixes.
        ATTN_IN: the stream as attention reads it, before its norm.
        MLP_IN: the stream as the MLP alone reads it, before its norm.
        NEURONS: the hidden neurons of the MLP, ``[t, f]``, before the last projection mixes them; those of a mixture of
            experts stand side by side, ``k`` times the features of an expert, and a shared expert's follow.
        PER_LAYER_IN: the stream as the gate of per-layer embeddings alone reads it.
        ROUTE: the experts of each token and their weights, a `jaxlin.nn.routers.Route`.
    """

    QUERIES = "q"
    KEYS = "k"
    PATTERN = "pattern"
    VALUES = "v"
    HEADS = "heads"
    GATED_HEADS = "gated_heads"
    ATTN_IN = "attn_in"
    MLP_IN = "mlp_in"
    NEURONS = "neurons"
    PER_LAYER_IN = "per_layer_in"
    ROUTE = "route"


STREAM = ("resid_pre", "resid_mid", "resid_post")
"""The sites that are the residual stream itself."""

CHANGES = ("change within", "change after")
"""What edits of a model change in the residual stream of a block, before its end and at its end."""

FROZEN = (InnerSite.QUERIES, InnerSite.KEYS, InnerSite.PATTERN, InnerSite.ROUTE)
"""The sites of frozen factors, and of what they are computed from: an edit there is part of the factor."""


class SiteError(JaxlinError):
    """A site, layer or position that the model does not have."""


@dataclass(frozen=True, order=True)
class Place:
    """A site in canonical form, ordered as the forward pass meets them.

    The output of block ``l`` is the input of block ``l + 1``, so ``("resid_post", l)`` is ``Place(l + 1, 0)`` and
    ``"embed"`` is ``Place(0, 0)``. The input of the block past the last is the residual stream before the final norm.

    Attributes:
        layer: the block.
        order: the index in `ORDER`.
        final: whether the final norm has been applied.
    """

    layer: int
    order: int = 0
    final: bool = False

    def __str__(self) -> str:
        if self.final:
            return "final"
        return "embed" if self == EMBED else f"({self.kind!r}, {self.layer})"

    @property
    def kind(self) -> Kind:
        """The kind of site in its block."""
        return ORDER[self.order]

    @property
    def inside(self) -> bool:
        """Whether the place lies within a block, rather than between two."""
        return self.order > 0


EMBED = Place(0)
"""The input embeddings."""


def is_cut(place: Place, value_layers: tuple[int, ...]) -> bool:
    """Whether all paths from before `place` to the output pass through it.

    Those of the stream do, but not of what is added to it; nor where a later layer reads values of an earlier one.

    Args:
        place: a place.
        value_layers: for each layer the one whose values it reads; empty where all read their own.
    """
    readers = ((layer, own) for layer, own in enumerate(value_layers) if layer != own)
    beside = any(Place(own, 1) <= place < Place(layer, 1) for layer, own in readers)
    return place.kind not in ADDED and not beside


def place(site: Site, layers: int, kinds: tuple[str, ...] = KINDS) -> Place:
    """The place of `site` in a model of `layers` blocks that have these `kinds` of sites.

    Raises:
        SiteError: no such site or layer.
    """
    if site == "embed":
        return EMBED
    if site == "final":
        return Place(layers, final=True)
    if not (isinstance(site, tuple) and len(site) == 2 and site[0] in kinds and is_integer(site[1])):
        raise SiteError(
            f'Site: expected "embed", "final" or a pair of a kind and a layer, as ("{kinds[0]}", 1); '
            f"found {quoted(site)}. Kinds are {', '.join(kinds)}."
        )
    kind, layer = site
    if not -layers <= layer < layers:
        raise SiteError(f"Site {quoted(site)}: expected a layer in 0..{layers - 1}; found {layer}.")
    layer = int(layer) % layers
    return Place(layer + 1) if kind == "resid_post" else Place(layer, ORDER.index(kind))


def ends(source: Site, target: Site, layers: int, kinds: tuple[str, ...] = KINDS) -> tuple[Place, Place]:
    """The places of both ends of a map.

    Raises:
        SiteError: no such site or layer, or a target that does not come after the source.
    """
    start, end = place(source, layers, kinds), place(target, layers, kinds)
    if not start < end:
        raise SiteError(
            f"Expected a target that comes after the source; found {quoted(target)} after {quoted(source)}."
        )
    return start, end


def checked_kinds(kinds: tuple[str, ...], available: tuple[str, ...]) -> tuple[str, ...]:
    """Return `kinds` if all of them are `available`.

    Raises:
        SiteError: one of them is not.
    """
    if isinstance(kinds, str) or not set(kinds) <= set(available):
        raise SiteError(f"Sites: expected kinds of {', '.join(available)}; found {quoted(kinds)}.")
    return tuple(kinds)


def position_in(tokens: int, position: int) -> int:
    """The index from the first token of `position`, which counts from the last one of `tokens` if it is negative.

    Raises:
        SiteError: no such position.
    """
    if not is_integer(position) or not -tokens <= position < tokens:
        raise SiteError(f"Position: expected one in 0..{tokens - 1} (or from -{tokens}); found {quoted(position)}.")
    return int(position) % tokens
