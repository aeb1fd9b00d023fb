"""Fitting a Jacobian lens to one prompt, against autograd of transformers.

PyTorch's side works as published fits do: the prompt is repeated in a batch, each copy has another row of the identity
at all of its valid positions, and one graph serves all rows. On the plain model it fits the ordinary derivative, on the
detached one the local linear map.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import jaxlin
from benchmarks.bars import AGREE
from benchmarks.floor import forward_products, nbytes, row_products
from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Setting, ratio
from jaxlin.nn.config import Config

OURS = {False: "fit, ordinary", True: "fit, frozen"}
TORCH = {False: "torch, ordinary", True: "torch, detached"}
TOGETHER = 32
"""Rows in a batch under PyTorch; published fits have 8 to 128."""
SKIP = 16
"""Positions at the start of a prompt that published fits leave out."""


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure all fits for each length; a quick run leaves them out."""
    if setting.quick and setting.tokens is None:
        yield "lens: a fit is left out of a quick run"
        return
    for tokens in setting.sizes((), (32,)):
        yield from at_length(setting, tokens)


def at_length(setting: Setting, tokens: int, skip: int = SKIP) -> Iterator[Finding]:
    """Measure both fits for one length, ours and PyTorch's.

    Raises:
        JaxlinError: the fits do not give the same matrices.
    """
    model, ids, size = setting.model, setting.ids(tokens), {"tokens": tokens}

    def ours(frozen: bool) -> Callable[[], Any]:
        return lambda: jaxlin.lens.fit(model, [ids], frozen=frozen, skip_first=skip, progress=False).maps

    calls = {OURS[frozen]: ours(frozen) for frozen in (False, True)}
    if (folder := setting.exported) is not None:
        calls |= {
            TORCH[frozen]: _torch(setting.peer if frozen else _plain(folder), ids, skip) for frozen in (False, True)
        }
    gaps: dict[str, float] = {}
    for frozen in (False, True):
        setting.say(f"a first {OURS[frozen]}")
        first = np.asarray(calls[OURS[frozen]]())
        if TORCH[frozen] in calls:
            setting.say(f"a first {TORCH[frozen]}")
            gaps[TORCH[frozen]] = gap = float(np.abs(calls[TORCH[frozen]]() - first).max() / np.abs(first).max())
            if not gap <= AGREE:
                raise jaxlin.JaxlinError(f"{TORCH[frozen]}: expected our lens within {AGREE:g}; found {gap:g}.")
    timings, floor_of = setting.timed(calls)
    weights = nbytes(model.layers)
    for name, timing in timings.items():
        frozen = name in (OURS[True], TORCH[True])
        floor = floor_of(products(model.config, tokens, frozen), weights + first.nbytes)
        figures = {"difference": gaps[name]} if name in gaps else {}
        yield Row.of("lens", name, size, timing, ours=name not in gaps, floor=floor, figures=figures)
    for frozen in (False, True):
        if TORCH[frozen] in timings:
            what = {**size, "of": "the local linear map" if frozen else "the ordinary derivative"}
            yield Ratio("lens, over PyTorch", what, ratio(timings[TORCH[frozen]], timings[OURS[frozen]]))


def products(config: Config, tokens: int, frozen: bool) -> int:
    """Operations of all rows from the last block to the first, at every position, and of one forward pass.

    The ordinary derivative passes the query, key and gate projections too, and of each pattern the derivatives by
    queries, keys and probabilities.
    """
    d, k, depth = config.hidden_size, config.head_dim, config.num_hidden_layers
    # No map goes through the lowest block, and all positions of the highest are read: the blocks between them count.
    inner = row_products(config, d, tokens, 3) - row_products(config, d, tokens, 2)
    if not frozen:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        more = tokens * d * (k * (heads + kv_heads) + config.intermediate_size)
        inner += 2 * d * (more + 3 * heads * k * tokens * (tokens + 1) // 2)
    return (depth - 1) * inner + forward_products(config, tokens)


def _plain(folder: Path) -> Any:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval().requires_grad_(False)


def _torch(model: Any, ids: list[int], skip: int) -> Callable[[], Any]:
    import torch

    valid, d = slice(skip, len(ids) - 1), model.config.hidden_size

    def fit() -> np.ndarray:
        streams: list[torch.Tensor] = []

        def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
            streams.append(output.requires_grad_() if not streams else output)

        hooks = [block.register_forward_hook(keep) for block in model.layers]
        model(input_ids=torch.tensor([ids]).expand(TOGETHER, -1), use_cache=False)
        for hook in hooks:
            hook.remove()
        maps = np.empty((len(streams) - 1, d, d), np.float32)
        for start in range(0, d, TOGETHER):
            count = min(TOGETHER, d - start)
            u = torch.zeros_like(streams[-1])
            u[:count, valid] = torch.eye(d)[start : start + count, None]
            slopes = torch.autograd.grad(streams[-1], streams[:-1], u, retain_graph=start + count < d)
            maps[:, start : start + count] = [slope[:count, valid].mean(1).numpy() for slope in slopes]
        return maps

    return fit
