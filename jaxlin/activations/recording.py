"""`record`: the values of a model at named sites, from one forward pass."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Float

from jaxlin.activations.recorded import Activations
from jaxlin.common.arguments import checked
from jaxlin.nn.context import Context
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.patterns import Pattern
from jaxlin.nn.prompt import Embeddings, array_of
from jaxlin.nn.site_names import ENDS, SITES, parse_site
from jaxlin.nn.sites import SiteError
from jaxlin.nn.stack import layer_of
from jaxlin.results import traced_to


@checked
def record(
    model: Decoder, x: Float[Embeddings, "t d"], sites: str | tuple[str, int] | Sequence[Any] | None = None
) -> Activations:
    """The values of `model` at named sites, from one forward pass: what TransformerLens calls `run_with_cache`.

    It works within `jax.jit`, `jax.vmap` and `jax.grad`.

    ===============  =============================  ==============================================================
    site             shape                          TransformerLens
    ===============  =============================  ==============================================================
    `embed`          ``[t, d]``                     `hook_embed`
    `resid_pre`      ``[layers, t, d]``             `blocks.{l}.hook_resid_pre`, the stream before the block
    `attn_out`       ``[layers, t, d]``             `blocks.{l}.hook_attn_out`, what is added, after any norm
    `resid_mid`      ``[layers, t, d]``             `blocks.{l}.hook_resid_mid`, between attention and the MLP
    `mlp_out`        ``[layers, t, d]``             `blocks.{l}.hook_mlp_out`, what is added, after any norm
    `per_layer_out`  ``[layers, t, d]``             of per-layer embeddings, as Gemma 4 has them
    `resid_post`     ``[layers, t, d]``             `blocks.{l}.hook_resid_post`, the stream after the block
    `q`              ``[layers, t, h, k]``          `blocks.{l}.attn.hook_rot_q`, after norms and rotation
    `k`              ``[layers, t, n, k]``          `blocks.{l}.attn.hook_rot_k`, after norms and rotation
    `pattern`        ``[layers, h, query, key]``    `blocks.{l}.attn.hook_pattern`
    `v`              ``[layers, t, n, k]``          `blocks.{l}.attn.hook_v`
    `heads`          ``[layers, t, h, k]``          `blocks.{l}.attn.hook_z`, before the output projection
    `neurons`        ``[layers, t, f]``             `blocks.{l}.mlp.hook_post`, before the last projection
    `route`          ``[layers, t, k]`` each        the experts of each token and their weights
    `final`          ``[t, d]``                     the stream after the final norm: `ln_final`, its weight included
    ===============  =============================  ==============================================================

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        x: the input embeddings.
        sites: one or more sites: a name, for all layers; a pair of a name and a layer, as ``("heads", 10)``; or a name
            of TransformerLens. By default all that the model has.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``.
        SiteError: the model has no such site or layer.
    """
    prompt, x, depth = x, model.check_embeddings(x), model.config.num_hidden_layers
    if sites is None:
        return traced_to(_record(model, x, None), model, prompt)
    is_single = isinstance(sites, str) or (isinstance(sites, tuple) and len(sites) == 2 and isinstance(sites[1], int))
    try:
        requested = (sites,) if is_single else tuple(sites)
    except TypeError:
        requested = (sites,)
    if not requested:
        raise SiteError("Sites: expected one or more; found none.")
    recorded = _record(model, x, tuple(dict.fromkeys(parse_site(site, depth) for site in requested)))
    return traced_to(recorded, model, prompt)


@functools.partial(jax.jit, static_argnames="sites")
def _record(
    model: Decoder, x: Float[Embeddings, "t d"], sites: tuple[tuple[str, int | None], ...] | None
) -> Activations:
    mode, depth = model.mode, model.config.num_hidden_layers
    names = SITES if sites is None else tuple(dict.fromkeys(name for name, _ in sites))
    inner = tuple(name for name in names if name not in ENDS)

    def collect(ctx: Context) -> tuple[Any, ...]:
        return tuple(_array(ctx.hooks.values.get(name)) for name in inner)

    stream, values = model.scan(x, lambda _: Context(mode), collect=collect)
    stacks = dict(zip(inner, values, strict=True))
    present = {name: stack for name, stack in stacks.items() if jax.tree.leaves(stack)}
    if sites is None:
        ends = {"embed": array_of(x), "final": model.norm(stream, Context(mode))}
        return Activations({**present, **ends}, {}, depth)
    if missing := [name for name in inner if name not in present]:
        raise SiteError(f"Sites: this model has no {missing[0]}.")
    present |= {"embed": array_of(x)} if "embed" in names else {}
    present |= {"final": model.norm(stream, Context(mode))} if "final" in names else {}
    single: dict[str, dict[int, Any]] = {}
    for name, layer in sites:
        if layer is not None:
            value = layer_of(present[name], layer)
            if not jax.tree.leaves(value):
                raise SiteError(f"Sites: layer {layer} of this model has no {name}.")
            single.setdefault(name, {})[layer] = value
    return Activations({name: present[name] for name, layer in sites if layer is None}, single, depth)


def _array(value: Any) -> Any:
    """A value at a site; a pattern as the array of its numbers."""
    return value.array() if isinstance(value, Pattern) else value
