"""How sure the routers of a mixture of experts are, measured on the unmodified model of transformers in float64."""

from pathlib import Path
from typing import Any

import oracle
import torch
from torch.overrides import TorchFunctionMode

NOISE = 2e-5
"""Scores of routers that are nearer to each other than this may change places in float32."""


class Margins(TorchFunctionMode):
    """By how little each choice of a router was made: the last score that it takes less the first that it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = [float("inf")]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, scores = getattr(func, "__name__", ""), args[0] if args else None
        # Scores of two axes are those of experts or of groups of them, by token; a group's own score is a sum of two.
        if name in ("topk", "max") and isinstance(scores, torch.Tensor) and scores.ndim == 2:
            k = 1 if name == "max" else args[1] if len(args) > 1 else kwargs["k"]
            if k < scores.shape[1]:
                ordered = scores.sort(dim=1, descending=True).values
                self.seen.append(float((ordered[:, k - 1] - ordered[:, k]).min()))
        elif name in ("gt", "__gt__") and isinstance(args[1], float):  # whether a score is too low to be chosen
            self.seen.append(float((scores - args[1]).abs().min()))
        return func(*args, **kwargs)


def router_margin(folder: Path, ids: list[int]) -> float:
    """The least margin of any choice of experts, in float64; infinite for a model that has no router.

    Where it is below the noise of float32, two right models may choose other experts, and logits say nothing.
    """
    model, margins = oracle.load(folder, torch.float64), Margins()
    for module in model.modules():
        if "Router" in type(module).__name__:
            module.register_forward_pre_hook(lambda m, i: margins.__enter__() and None)
            module.register_forward_hook(lambda m, i, output: margins.__exit__(None, None, None))
    with torch.no_grad(), oracle.precision(model, torch.float64):
        model(input_ids=torch.tensor([ids]))
    return min(margins.seen)
