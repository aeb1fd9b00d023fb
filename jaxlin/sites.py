"""Sites: named places on the residual stream, as users write them and as the scan over blocks needs them."""

from dataclasses import dataclass
from typing import Literal

from jaxlin.errors import JaxlinError

Kind = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
Site = str | tuple[str, int]
"""``"embed"``, ``"final"`` (after the final norm), or ``(kind, layer)``; a negative layer counts from the last."""

KINDS: tuple[Kind, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


class SiteError(JaxlinError):
    """A site, layer or position that the model does not have."""


@dataclass(frozen=True, order=True)
class Place:
    """A site in canonical form, ordered as the forward pass meets them.

    The output of block ``l`` is the input of block ``l + 1``, so ``("resid_post", l)`` is ``Place(l + 1, 0)`` and
    ``"embed"`` is ``Place(0, 0)``. The input of the block past the last is the residual stream before the final norm.

    Attributes:
        layer: the block.
        order: the index in `KINDS`.
        final: whether the final norm has been applied.
    """

    layer: int
    order: int = 0
    final: bool = False

    def __str__(self) -> str:
        if self.final:
            return "final"
        return "embed" if self == EMBED else f"({self.kind}, {self.layer})"

    @property
    def kind(self) -> Kind:
        """The kind of site in its block."""
        return KINDS[self.order]

    @property
    def inside(self) -> bool:
        """Whether the place lies within a block, rather than between two."""
        return self.order > 0

    @property
    def is_cut(self) -> bool:
        """Whether everything that reaches the output passes here: true of the stream, not of what is added to it."""
        return self.kind not in ("attn_out", "mlp_out")


EMBED = Place(0)
"""The input embeddings."""


def place(site: Site, layers: int, kinds: tuple[str, ...] = KINDS) -> Place:
    """Find `site` in a model of `layers` blocks that have the given `kinds` of sites.

    Raises:
        SiteError: no such site or layer.
    """
    if site == "embed":
        return EMBED
    if site == "final":
        return Place(layers, final=True)
    if not (isinstance(site, tuple) and len(site) == 2 and site[0] in kinds and type(site[1]) is int):
        raise SiteError(f'Site: expected "embed", "final" or a pair of {", ".join(kinds)} and a layer; found {site!r}.')
    kind, layer = site
    if not -layers <= layer < layers:
        raise SiteError(f"Site {site!r}: expected a layer in 0..{layers - 1}; found {layer}.")
    layer %= layers
    return Place(layer + 1) if kind == "resid_post" else Place(layer, KINDS.index(kind))


def position_in(tokens: int, position: int) -> int:
    """`position` in a prompt of `tokens`, counted from the first; a negative one counts from the last.

    Raises:
        SiteError: no such position.
    """
    if not -tokens <= position < tokens:
        raise SiteError(f"Position: expected one in 0..{tokens - 1} (or from -{tokens}); found {position}.")
    return position % tokens
