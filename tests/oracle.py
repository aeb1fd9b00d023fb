"""An oracle that shares no code with jaxlin: unmodified transformers models in PyTorch, run under function modes.

`Lift` makes a float64 model truly float64: transformers casts norms, softmax and rotary tables to float32 inside.
`Freeze` freezes the factor of every nonlinearity, so that autograd gives the local linear map.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import frozen_modules
import numpy as np
import torch
import transformers
from torch.overrides import TorchFunctionMode

SHARES = {"gate": (0.0, 1.0), "up": (1.0, 0.0), "half": (0.5, 0.5)}
"""For each freeze rule, the shares of a gated MLP's derivative that go through the gate and through the up branch."""


class Lift(TorchFunctionMode):
    """Turns every cast to float32 into a cast to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "float" and isinstance(args[0], torch.Tensor):
            return args[0].double()

        def widened(a: Any) -> Any:
            return torch.float64 if a is torch.float32 else a

        return func(*map(widened, args), **{key: widened(value) for key, value in kwargs.items()})


@contextlib.contextmanager
def lifted(model: torch.nn.Module) -> Iterator[None]:
    """Compute in float64 throughout: casts, new tensors without a dtype, and the rotary tables, which are rebuilt."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Lift():
            for parent in list(model.modules()):
                for name, child in list(parent.named_children()):
                    if type(child).__name__.endswith("RotaryEmbedding"):
                        setattr(parent, name, type(child)(child.config))
            yield
    finally:
        torch.set_default_dtype(default)


class Freeze(TorchFunctionMode):
    """Makes attention probabilities, inverse norms, sigmoids and slopes of activations constants to differentiation.

    Args:
        through_gate: the share of an activation's derivative, ``act(x) / x``, that is taken.
    """

    def __init__(self, through_gate: float) -> None:
        super().__init__()
        self.through_gate = through_gate

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "layer_norm":
            return self._layer_norm(*args, **kwargs)
        if name == "clamp_":
            z = args[0]
            return z.mul_(frozen_modules.ratio(torch.clamp(z, *args[1:], **kwargs), z))
        out = func(*args, **kwargs)
        is_root = name in ("pow", "__pow__") and isinstance(args[1], float) and abs(args[1]) == 0.5
        if name in ("softmax", "rsqrt", "sqrt", "sigmoid") or is_root:
            return out.detach()
        if name == "silu":
            return self._scaled(args[0], torch.sigmoid(args[0]), out)
        if name == "gelu":
            return self._scaled(args[0], _gelu_slope(args[0], kwargs.get("approximate", "none")), out)
        if name == "tanh":
            z = args[0]
            return z * frozen_modules.ratio(out, z)
        return out

    def _scaled(self, x: torch.Tensor, slope: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.detach() + self.through_gate * slope.detach() * (x - x.detach())

    @staticmethod
    def _layer_norm(
        x: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps).detach()
        y = y if weight is None else y * weight
        return y if bias is None else y + bias


def _gelu_slope(x: torch.Tensor, approximate: str) -> torch.Tensor:
    if approximate == "tanh":
        return 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return 0.5 * (1 + torch.erf(x * 0.5**0.5))


class Reference(NamedTuple):
    """The output of the unmodified model.

    Attributes:
        logits: ``[t, vocab]``.
        states: ``[t, d]``, after the final norm.
    """

    logits: np.ndarray
    states: np.ndarray


class FrozenRows(NamedTuple):
    """Rows of the local linear map at one position.

    Attributes:
        rows: ``[r, t, d]``, the products of the directions with J.
        bias: ``[r]``, the products of the directions with b.
        output: ``[d]``.
    """

    rows: np.ndarray
    bias: np.ndarray
    output: np.ndarray


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The model as transformers loads it, with eager attention and experts, whose operations the modes can see."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()
    if architecture == "Llama4ForConditionalGeneration":  # whose own forward pass fails without images
        model = model.language_model
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")  # the default refuses float64
    return model


def body(model: Any) -> Any:
    """The model without its unembedding."""
    return model.model if model.base_model is model else model.base_model


def precision(model: torch.nn.Module, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """`lifted` in float64; in other dtypes nothing, so that transformers computes as it always does."""
    return lifted(model) if dtype is torch.float64 else contextlib.nullcontext()


def reference(folder: Path, ids: list[int], dtype: torch.dtype) -> Reference:
    """Logits and final states at every position; in float64 with transformers' casts lifted."""
    model = load(folder, dtype)
    states: list[torch.Tensor] = []
    body(model).register_forward_hook(lambda m, i, out: states.append(out.last_hidden_state[0]))
    with torch.no_grad(), precision(model, dtype):
        return Reference(model(input_ids=torch.tensor([ids])).logits[0].numpy(), states[0].numpy())


def logits(folder: Path, ids: list[int], dtype: torch.dtype) -> np.ndarray:
    """Logits at every position, ``[t, vocab]``."""
    return reference(folder, ids, dtype).logits


def embeddings(folder: Path, ids: list[int], dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The input x, ``[t, d]``, at which maps are taken."""
    model = load(folder, dtype)
    with torch.no_grad(), precision(model, dtype):
        return inputs(model, ids)["inputs_embeds"][0].numpy()


def inputs(model: Any, ids: list[int]) -> dict[str, torch.Tensor]:
    """What a model is called with in place of `ids`: its input x, and what else it takes from the ids.

    The embeddings of positions, where a model adds those to the tokens', are part of x; the model forgets its own.
    """
    row = torch.tensor([ids])
    x = model.get_input_embeddings()(row)
    for module in model.modules():
        if hasattr(module, "get_per_layer_inputs") and getattr(module, "hidden_size_per_layer_input", 0):
            unknown = (None,) if "Gemma4" in type(module).__name__ else ()
            return {"inputs_embeds": x, "per_layer_inputs": module.get_per_layer_inputs(row, *unknown)}
        if hasattr(module, "wpe"):
            x = x + module.wpe(torch.arange(len(ids)))
            torch.nn.init.zeros_(module.wpe.weight)
    return {"inputs_embeds": x}


@contextlib.contextmanager
def frozen(model: torch.nn.Module, rule: str) -> Iterator[None]:
    """Freeze every nonlinear factor; `rule` says through which branch of a gated MLP the derivative goes."""
    through_gate, through_up = SHARES[rule]
    names = [name for name, _ in model.named_modules()]
    gated = any(name.endswith(("gate_up_proj", "up_proj", "experts")) for name in names)
    through_gate = through_gate if gated else 1.0

    def up(output: torch.Tensor) -> torch.Tensor:
        return output.detach() + through_up * (output - output.detach())

    def gate_and_up(output: torch.Tensor) -> torch.Tensor:
        gate, rest = output.chunk(2, dim=-1)
        return torch.cat([gate, up(rest)], dim=-1)

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name.endswith("gate_up_proj"):
                hook = module.register_forward_hook(lambda m, i, output: gate_and_up(output))
                stack.callback(hook.remove)
            elif name.endswith("up_proj"):
                hook = module.register_forward_hook(lambda m, i, output: up(output))
                stack.callback(hook.remove)
        stack.enter_context(frozen_modules.replaced(model, up, through_gate))
        stack.enter_context(Freeze(through_gate))
        yield


def frozen_rows(
    folder: Path,
    ids: list[int],
    position: int,
    directions: np.ndarray,
    rule: str = "gate",
    dtype: torch.dtype = torch.float64,
) -> FrozenRows:
    """Rows of the map by autograd of the frozen model."""
    model = load(folder, dtype)
    with precision(model, dtype), frozen(model, rule):
        return _rows(model, ids, position, torch.as_tensor(directions, dtype=dtype))


def frozen_map(
    folder: Path, ids: list[int], position: int, rule: str = "gate", dtype: torch.dtype = torch.float64
) -> FrozenRows:
    """The dense map: J ``[d, t, d]``, b and f."""
    model = load(folder, dtype)
    with precision(model, dtype), frozen(model, rule):
        return _rows(model, ids, position, torch.eye(model.get_input_embeddings().embedding_dim, dtype=dtype))


def ordinary_jacobian(folder: Path, ids: list[int], position: int, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The derivative of the model with nothing frozen, ``[d, t, d]``."""
    model = load(folder, dtype)
    with precision(model, dtype):
        return _rows(model, ids, position, torch.eye(model.get_input_embeddings().embedding_dim, dtype=dtype)).rows


def frozen_logits(folder: Path, ids: list[int], position: int, tokens: list[int], rule: str = "gate") -> FrozenRows:
    """The map to the logits of `tokens`, through the unembedding and its frozen softcap."""
    model = load(folder, torch.float64)
    with precision(model, torch.float64), frozen(model, rule):
        directions = torch.nn.functional.one_hot(torch.tensor(tokens), model.get_output_embeddings().out_features)
        frozen_rows = _rows(model, ids, position, directions.double(), of_logits=True)
        return frozen_rows._replace(output=frozen_rows.output[tokens])


def _rows(model: Any, ids: list[int], position: int, directions: torch.Tensor, of_logits: bool = False) -> FrozenRows:
    """Rows by backward passes of the model, frozen or not; b is the sum over additive biases of (df/dbias) bias."""
    with torch.no_grad():
        leaves = inputs(model, ids)
    x = leaves["inputs_embeds"].requires_grad_()
    outputs = model(**leaves).logits if of_logits else body(model)(**leaves, use_cache=False).last_hidden_state
    output = outputs[0, position]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    rows, offsets = [], []
    for u in directions:
        row, *slopes = torch.autograd.grad(output @ u, [x, *biases], retain_graph=True, allow_unused=True)
        rows.append(row[0].numpy())
        pairs = zip(slopes, biases, strict=True)
        offsets.append(sum(float((slope * p.detach()).sum()) for slope, p in pairs if slope is not None))
    return FrozenRows(np.stack(rows), np.array(offsets), output.detach().numpy())
