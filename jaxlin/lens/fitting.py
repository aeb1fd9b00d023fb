r"""Fit a lens: the mean over prompts of the map from each layer's stream to the last, of all later positions together.

$$J_l = \mathbb{E}_\text{prompts}\Big[\frac{1}{|V|}\sum_{t \in V}\ \sum_{t' \in V,\, t' \ge t}
\frac{\partial h_{L,t'}}{\partial h_{l,t}}\Big]$$

for the stream $h_l$ after block $l$, the last block $L$ and the positions $V$ of a prompt but the first
``skip_first``, which are unlike the others, and its last, which has no next token. One backward pass of one row, put in
at all of $V$ at once, gives that row of every layer's matrix: a probe that is added at all of $V$ sums over $t$.

Source: Gurnee et al., arXiv 2607.15495, 2026, and the estimator of its code, ``jlens.fitting``.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxlin.checkpoint.config import is_number
from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import write_lock
from jaxlin.common.printable import quoted
from jaxlin.lens.files import save
from jaxlin.lens.jacobian_lens import ORDINARY, JacobianLens
from jaxlin.lens.paths import check_path
from jaxlin.lens.prompt_maps import prompt_maps, rows_together
from jaxlin.lens.sums import Sums
from jaxlin.linearize.frozen import rule_of
from jaxlin.nn.arguments import check_model
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.fingerprints import fingerprint
from jaxlin.nn.hold import Rule
from jaxlin.nn.sites import is_whole

FEWEST = 10
"""Prompts that are taken before a `tolerance` can end a fit."""


def fit(
    model: Decoder,
    prompts: Sequence[Any],
    *,
    held: bool = False,
    rule: Rule | str | None = None,
    layers: Sequence[int] | None = None,
    skip_first: int = 16,
    longest: int = 128,
    tolerance: float | None = None,
    block: int | None = None,
    out: str | PathLike[str] | None = None,
    progress: bool = True,
) -> JacobianLens:
    r"""The Jacobian lens of `model` over `prompts`.

    Of each prompt, one forward pass and a backward pass of ``d`` rows from the last block to the first layer asked for.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        prompts: token ids of each. Those of fewer than ``skip_first + 2`` tokens have no position and are left out.
        held: average the local linear map instead of the ordinary derivative, every nonlinear factor held.
        rule: the freeze rule of gated MLPs, for `held`; the model's own unless given.
        layers: which to fit, counted from 0; negative ones count from the last. All but the last unless given.
        skip_first: how many positions at the start of each prompt are left out.
        longest: of a longer prompt, the first so many tokens are taken.
        tolerance: stop as soon as `JacobianLens.error` of every layer is at most this, after `FEWEST` prompts or more;
            all prompts are taken unless given.
        block: rows computed together; as many as are fast unless given.
        out: a ``.safetensors`` or ``.pt`` file to write. Beside it the sums so far are kept in ``OUT.partial``, after
            each prompt where that takes a twentieth of the time or less, else more rarely, but once a minute; and when
            interrupted. The same call goes on from there.
        progress: show a bar.

    Raises:
        PromptError: ids outside the vocabulary, or more of them than the model's context.
        JaxlinError: no prompts that are long enough, no such layer or rule, or a file that cannot be written or was
            begun with something else.
    """
    check_model(model)
    depth, chosen = model.config.num_hidden_layers, rule_of(model, rule)
    if not held and rule is not None:
        raise JaxlinError("Fit: a rule says what is held; give held=True with it.")
    for name, number, least in (("skip_first", skip_first, 0), ("longest", longest, skip_first + 2)):
        if not is_whole(number) or number < least:
            raise JaxlinError(f"Fit, {name}: expected an integer of at least {least}; found {quoted(number)}.")
    if block is not None and (not is_whole(block) or block < 1):
        raise JaxlinError(f"Fit, block: expected at least 1 row; found {quoted(block)}.")
    if tolerance is not None and not (is_number(tolerance) and tolerance >= 0):
        raise JaxlinError(f"Fit, tolerance: expected a number of at least 0; found {quoted(tolerance)}.")
    kept = _layers(layers, depth)
    taken = _taken(model, list(prompts), skip_first, longest)
    estimator = f"local_linear_map, {chosen}" if held else ORDINARY
    path = None if out is None else check_path(out)
    tokens = max(map(len, taken))
    rows = rows_together(model, tokens, held) if block is None else int(block)

    def of(ids: list[int]) -> Float[Array, "n d e"]:
        # All prompts are of one length to the compiler: no position sees a later one, and the last are left out.
        padded = tokens if model.same_frequencies(len(ids), tokens) else len(ids)
        x = model.embed(ids + ids[-1:] * (padded - len(ids)))
        valid = (np.arange(padded) >= skip_first) & (np.arange(padded) < len(ids) - 1)
        return prompt_maps(
            model, x, valid, np.asarray(kept, np.int32), first=kept[0], held=held, rule=chosen, block=rows
        )

    identity = "" if path is None else _identity(model, taken[0], estimator, kept, skip_first)
    wide = jnp.promote_types(model.dtype, jnp.float32)
    sums = Sums(path, (len(kept), model.config.hidden_size), wide, identity)

    def lens() -> JacobianLens:
        return JacobianLens(sums.mean, kept, sums.prompts, estimator, skip_first, sums.deviations)

    def settled() -> bool:
        return tolerance is not None and sums.prompts >= FEWEST and bool(np.all(lens().error <= tolerance))

    with write_lock(path) if path is not None else contextlib.nullcontext():
        sums.resume(taken)
        hidden = None if progress else True
        bar = tqdm(total=len(taken), initial=sums.prompts, unit="prompt", desc="lens", delay=1, disable=hidden)
        with bar, sums:
            for ids in taken[sums.prompts :]:
                if settled():
                    break
                sums.add(ids, of(ids))
                bar.update()
        found = lens()
        if path is not None:
            save(found, path)
            sums.forget()
        return found


def _layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if depth < 2:
        raise JaxlinError("Fit: expected a model of two layers or more: the last layer needs no lens.")
    if layers is None:
        return tuple(range(depth - 1))
    layers = list(layers)
    if not len(layers) or not all(is_whole(each) and -depth <= each < depth - 1 and each != -1 for each in layers):
        raise JaxlinError(f"Fit, layers: expected some of 0..{depth - 2}; found {layers}.")
    return tuple(sorted({int(layer) % depth for layer in layers}))


def _taken(model: Decoder, prompts: list[Any], skip_first: int, longest: int) -> list[list[int]]:
    if any(isinstance(ids, str) or np.ndim(ids) != 1 for ids in prompts):
        raise JaxlinError("Fit: expected a list of prompts, each a list of token ids, as tokenizer.encode(text) gives.")
    taken = [model.check_ids(ids[:longest]).tolist() for ids in prompts if len(ids) > skip_first + 1]
    if not taken:
        raise JaxlinError(
            f"Fit: expected prompts of {skip_first + 2} tokens or more; found none among {len(prompts)}. "
            "Give longer ones, or a smaller skip_first."
        )
    if short := len(prompts) - len(taken):
        warnings.warn(
            f"{short} of {len(prompts)} prompts have fewer than {skip_first + 2} tokens and are left out.", stacklevel=3
        )
    return taken


def _identity(model: Decoder, ids: Sequence[int], estimator: str, layers: tuple[int, ...], skip_first: int) -> str:
    """What tells the sums of one fit from those of another, but for the prompts."""
    said = hashlib.sha256(repr((estimator, layers, skip_first, fingerprint(model))).encode())
    said.update(np.asarray(_output(model, model.embed(ids))).tobytes())
    return said.hexdigest()


@jax.jit
def _output(model: Decoder, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
    return model(x)
