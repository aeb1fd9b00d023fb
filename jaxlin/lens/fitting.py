r"""Fit a Jacobian lens: the mean over prompts of the map from the stream of each layer to the last stream.

$$J_l = \mathbb{E}_\text{prompts}\Big[\frac{1}{|V|}\sum_{t \in V}\ \sum_{t' \in V,\, t' \ge t}
\frac{\partial h_{L,t'}}{\partial h_{l,t}}\Big]$$

Here $h_l$ is the residual stream after block $l$, and $L$ is the last block. $V$ are the positions of a prompt without
the first ``skip_first``, whose streams are unlike those of the others, and without the last, which has no next token.
The cotangent of one output feature, put in at all of $V$ at once, gives that row of the matrix of every layer in one
backward pass: its derivative with respect to a probe that is added at all of $V$ is the sum over $t$.

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

from jaxlin.checkpoint.config import is_number
from jaxlin.common.annotations import is_integer, is_numeric
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import write_lock
from jaxlin.common.printable import quoted
from jaxlin.common.progress import progress_bar
from jaxlin.lens.files import ORDINARY, new_path
from jaxlin.lens.jacobian_lens import JacobianLens, save
from jaxlin.lens.prompt_maps import default_dim_batch, prompt_maps
from jaxlin.lens.running_mean import RunningMean
from jaxlin.linearize.frozen import rule_of
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.fingerprints import fingerprint
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.prompt import Embeddings
from jaxlin.results import traced_to

MIN_PROMPTS = 10
"""The number of prompts before which a `tolerance` does not end a fit."""


@checked
def fit(
    model: Decoder,
    prompts: Sequence[Any],
    *,
    frozen: bool = False,
    rule: Rule | str | None = None,
    source_layers: Sequence[int] | None = None,
    skip_first: int = 16,
    max_seq_len: int = 128,
    tolerance: float | None = None,
    dim_batch: int | None = None,
    corpus: str | None = None,
    out: str | PathLike[str] | None = None,
    progress: bool = True,
) -> JacobianLens:
    r"""The Jacobian lens of `model` over `prompts`.

    Each prompt takes one forward pass, and one backward pass of ``d`` rows from the last block down to the first of
    `source_layers`.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        prompts: the token ids of each prompt. Prompts of fewer than ``skip_first + 2`` tokens have no position in $V$
            and are left out, with a warning.
        frozen: average the local linear map, with every nonlinear factor frozen, in place of the ordinary derivative.
        rule: the freeze rule of gated MLPs if `frozen`; the model's own by default.
        source_layers: the layers to fit, counted from 0; negative ones count from the last. All but the last by
            default.
        skip_first: how many positions at the start of each prompt are left out.
        max_seq_len: prompts are cut after this many tokens.
        tolerance: stop as soon as `JacobianLens.error` of every layer is at most this, after `MIN_PROMPTS` prompts or
            more. By default all prompts are used.
        dim_batch: how many rows of the matrices are computed together; as many as are fast by default.
        corpus: the name of the corpus, which is noted in the file beside the model and the versions.
        out: a ``.safetensors`` or ``.pt`` file to write. Until the fit is complete its sums are in ``OUT.partial``,
            written after each prompt if that takes at most a twentieth of the time, otherwise more rarely, but at least
            once a minute, and on an interruption. The same call resumes from there.
        progress: show a progress bar.

    Raises:
        PromptError: ids outside the vocabulary, or more of them than the model's context.
        JaxlinError: no prompt that is long enough, no such layer or rule, or a file that cannot be written or belongs
            to another fit.
    """
    check_not_traced("Fit", model, prompts)
    depth, frozen_rule = model.config.num_hidden_layers, rule_of(model, rule)
    if not frozen and rule is not None:
        raise JaxlinError("Fit: a rule says which factors are frozen; give frozen=True with it.")
    for name, number, least in (("skip_first", skip_first, 0), ("max_seq_len", max_seq_len, skip_first + 2)):
        if not is_integer(number) or number < least:
            raise JaxlinError(f"Fit, {name}: expected an integer of at least {least}; found {quoted(number)}.")
    if dim_batch is not None and (not is_integer(dim_batch) or dim_batch < 1):
        raise JaxlinError(f"Fit, dim_batch: expected at least 1 row; found {quoted(dim_batch)}.")
    if tolerance is not None and not (is_number(tolerance) and tolerance >= 0):
        raise JaxlinError(f"Fit, tolerance: expected a number of at least 0; found {quoted(tolerance)}.")
    layers = _layer_indices(source_layers, depth)
    cut = _cut_prompts(model, list(prompts), skip_first, max_seq_len)
    estimator = f"local_linear_map, {frozen_rule}" if frozen else ORDINARY
    path = None if out is None else new_path(out)
    tokens = max(map(len, cut))
    rows = default_dim_batch(model, tokens, frozen) if dim_batch is None else int(dim_batch)

    def maps_of(ids: list[int]) -> Float[Array, "n d e"]:
        # Prompts are padded to one length, so that they share a compiled program. No position attends to a later one,
        # and the padding is not in V.
        length = tokens if model.same_frequencies(len(ids), tokens) else len(ids)
        x = model.check_embeddings(model.embed(ids + ids[-1:] * (length - len(ids))))
        valid = (np.arange(length) >= skip_first) & (np.arange(length) < len(ids) - 1)
        indices = np.asarray(layers, np.int32)
        return prompt_maps(model, x, valid, indices, first=layers[0], frozen=frozen, rule=frozen_rule, dim_batch=rows)

    identity = "" if path is None else _identity(model, cut[0], estimator, layers, skip_first)
    dtype = jnp.promote_types(model.dtype, jnp.float32)
    mean = RunningMean(path, (len(layers), model.config.hidden_size), dtype, identity)

    def lens() -> JacobianLens:
        fitted = JacobianLens(mean.mean, layers, mean.n_prompts, estimator, skip_first, mean.squared_deviations)
        return traced_to(fitted, model, rule=frozen_rule, corpus=corpus, max_seq_len=max_seq_len)

    def is_settled() -> bool:
        return tolerance is not None and mean.n_prompts >= MIN_PROMPTS and bool(np.all(lens().error <= tolerance))

    with write_lock(path) if path is not None else contextlib.nullcontext():
        mean.resume(cut)
        bar = progress_bar(show=progress, total=len(cut), initial=mean.n_prompts, unit="prompt", desc="lens")
        with bar, mean:
            for ids in cut[mean.n_prompts :]:
                if is_settled():
                    break
                mean.add(ids, maps_of(ids))
                bar.update()
        fitted = lens()
        if path is not None:
            save(fitted, path)
            mean.delete_file()
        return fitted


def _layer_indices(source_layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if depth < 2:
        raise JaxlinError("Fit: expected a model of two layers or more: the last layer needs no lens.")
    if source_layers is None:
        return tuple(range(depth - 1))
    layers = list(source_layers)
    if not len(layers) or not all(is_integer(each) and -depth <= each < depth - 1 and each != -1 for each in layers):
        raise JaxlinError(f"Fit, source_layers: expected some of 0..{depth - 2}; found {quoted(layers)}.")
    return tuple(sorted({int(layer) % depth for layer in layers}))


def _cut_prompts(model: Decoder, prompts: list[Any], skip_first: int, max_seq_len: int) -> list[list[int]]:
    """The token ids of the prompts that are long enough, each cut to `max_seq_len`."""
    if not all(is_numeric(ids) and np.ndim(ids) == 1 for ids in prompts):
        raise JaxlinError(
            "Fit: expected a list of prompts, each a list of token ids, as tokenizer.encode(text) gives; found "
            f"{quoted(prompts)}."
        )
    cut = [model.check_ids(ids[:max_seq_len]).tolist() for ids in prompts if len(ids) > skip_first + 1]
    if not cut:
        raise JaxlinError(
            f"Fit: expected prompts of {skip_first + 2} tokens or more; found none among {len(prompts)}. "
            "Give longer ones, or a smaller skip_first."
        )
    if short := len(prompts) - len(cut):
        warnings.warn(
            f"{short} of {len(prompts)} prompts have fewer than {skip_first + 2} tokens and are left out.", stacklevel=4
        )
    return cut


def _identity(model: Decoder, ids: Sequence[int], estimator: str, layers: tuple[int, ...], skip_first: int) -> str:
    """A hash that tells the sums of this fit from those of others; the prompts have a hash of their own."""
    digest = hashlib.sha256(repr((estimator, layers, skip_first, fingerprint(model))).encode())
    digest.update(np.asarray(_output(model, model.embed(ids))).tobytes())
    return digest.hexdigest()


@jax.jit
def _output(model: Decoder, x: Float[Embeddings, "t d"]) -> Float[Array, "t d"]:
    return model(x)
