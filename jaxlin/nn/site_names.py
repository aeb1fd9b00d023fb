"""The names of sites, as users write them: those of this package, and TransformerLens' for the same values."""

import operator
import re
import sys
from typing import Annotated, Any, get_args

from jaxlin.common.annotations import is_integer
from jaxlin.common.arguments import checked
from jaxlin.common.printable import quoted
from jaxlin.nn.sites import InnerSite, Kind, SiteError

ENDS = ("embed", "final")
"""The sites that no layer has: the input embeddings, and the stream after the final norm."""

SITES: tuple[str, ...] = ("embed", *get_args(Kind), *map(str, InnerSite), "final")
"""The names of all sites; a model may lack some of them."""

ALIASES = {"z": "heads", "post": "neurons", "rot_q": "q", "rot_k": "k"}
"""Short names that TransformerLens has for sites of another name here."""

HOOK_NAMES = {
    "hook_embed": "embed",
    "ln_final.hook_normalized": "final",
    **{f"hook_{name}": name for name in get_args(Kind)},
    "attn.hook_rot_q": "q",
    "attn.hook_rot_k": "k",
    "attn.hook_v": "v",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "heads",
    "mlp.hook_post": "neurons",
}
"""The names of TransformerLens' hooks, without ``blocks.{layer}.``, and the sites here."""


@checked
def parse_site(site: Any, depth: int) -> tuple[str, int | None]:
    """The name of `site` and its layer, or None for all layers.

    Args:
        site: a name, as ``"heads"``; a pair of a name and a layer, as ``("heads", 10)``, where a negative layer counts
            from the last; or the name of a hook of TransformerLens, as ``"blocks.10.attn.hook_z"``.
        depth: the number of layers of the model.

    Raises:
        SiteError: no such site or layer.
    """
    name, layer = site if isinstance(site, tuple) and len(site) == 2 else (site, None)
    if isinstance(site, str) and "hook_" in site:
        prefix = re.match(r"blocks\.(\d{1,6})\.", site)
        layer = int(prefix[1]) if prefix else None
        name = HOOK_NAMES.get(site[prefix.end() :] if prefix else site)
        if name is None or (layer is None) != (name in ENDS):
            raise SiteError(
                f"Site: {quoted(site)} is no site here. Those with a counterpart are {', '.join(HOOK_NAMES)}, within "
                "blocks.{layer}. but for the first two; queries and keys are read after their rotation."
            )
    canonical = ALIASES.get(name, name) if isinstance(name, str) else None
    has_layer = layer is None or (is_integer(layer) and name not in ENDS)
    if canonical not in SITES or not has_layer:
        raise SiteError(
            f'Site: expected one of {", ".join(SITES)}, by itself or with a layer as ("heads", 1); found '
            f"{quoted(site)}."
        )
    index = None if layer is None else operator.index(layer)  # an int32 cannot be compared with every depth
    if index is not None and not -depth <= index < depth:
        raise SiteError(f"Site {quoted(site)}: expected a layer in 0..{depth - 1}; found {index}.")
    return canonical, None if index is None else index % depth


def _named(site: Any) -> None:
    """Refuse what no model has a site of; which layers there are, the model says."""
    parse_site(site, sys.maxsize)


NamedSite = Annotated[Any, _named]
"""A site as `parse_site` takes it, in the signature of a function that has no model to look it up in."""
