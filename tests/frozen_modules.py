"""Modules of transformers written out plainly, where what must be frozen is no function of its own in their code.

Each row of `REPLACEMENTS` gives, for the modules of some name, the attributes that stand in for theirs while a model is
frozen. They compute the same values. `SHARED` does so for functions of a file that its modules call.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

Up = Callable[[torch.Tensor], torch.Tensor]
"""Takes its share of the derivative, as the freeze rule says, of an up branch."""

Attributes = dict[str, Any]


def ratio(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`y / x`, frozen; 1 where `x` is 0."""
    return torch.where(x == 0, 1, y / torch.where(x == 0, 1, x)).detach()


class Scaled(torch.nn.Module):
    """An activation as its input times its frozen slope, under every freeze rule."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z * ratio(self.act(z), z)


def experts(module: Any, up: Up) -> Attributes:
    """Experts that get their tokens from the router: its indices and weights are frozen."""

    def forward(x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, x.shape[-1])
        gate, rest = torch.einsum("td,tkfd->tkf", x, module.gate_up_proj[indices]).chunk(2, dim=-1)
        hidden = module.act_fn(gate) * up(rest) * weights.detach()[..., None]
        return torch.einsum("tkf,tkdf->td", hidden, module.down_proj[indices])

    return {"forward": forward}


def experts_of_all_tokens(module: Any, up: Up) -> Attributes:
    """Experts that all get every token, times its weight, which is 0 where the router has not chosen them."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        gate, rest = torch.bmm(x.view(module.num_experts, -1, x.shape[-1]), module.gate_up_proj).chunk(2, dim=-1)
        return torch.bmm(module.act_fn(gate) * up(rest), module.down_proj).reshape(-1, x.shape[-1])

    return {"forward": forward}


def clipped_experts(module: Any, up: Up, through_gate: float) -> Attributes:
    """Experts with biases, whose branches are clipped and interleaved, and whose up branch has 1 added to it.

    That 1 is an additive constant like a bias, so it is a parameter, whose share of b is counted with theirs. The up
    branch is clipped with it.
    """
    module.one_bias = torch.nn.Parameter(torch.ones((), dtype=module.down_proj.dtype))

    def forward(x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        both = torch.einsum("td,tkdf->tkf", x, module.gate_up_proj[indices]) + module.gate_up_proj_bias[indices]
        gate, rest = both[..., ::2], both[..., 1::2]
        gate = gate * ratio(gate.clamp(max=module.limit), gate)
        rest = rest + module.one_bias
        rest = rest * ratio(rest.clamp(1 - module.limit, 1 + module.limit), rest)
        slope = torch.sigmoid(gate * module.alpha).detach()
        act = (gate * slope).detach() + through_gate * slope * (gate - gate.detach())
        hidden = up(rest) * act
        outputs = torch.einsum("tkf,tkfd->tkd", hidden, module.down_proj[indices]) + module.down_proj_bias[indices]
        return (outputs * weights.detach()[..., None]).sum(dim=1)

    return {"forward": forward}


def sparse_mlp(module: Any, up: Up, through_gate: float) -> Attributes:
    """An MLP whose gate is cut at a threshold of its own mean and deviation, within the activation."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        gate = module.gate_proj(x)
        act = module.act_fn(module._gaussian_topk(gate) if module.activation_sparsity > 0 else gate).detach()
        act = act + through_gate * ratio(act, gate) * (gate - gate.detach())
        return module.down_proj(act * module.up_proj(x))

    return {"forward": forward}


def gated_norm(module: Any) -> Attributes:
    """A norm of heads times the silu of a gate, which is frozen under every rule."""
    forward = type(module).forward

    def frozen(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return forward(module, x, gate.detach())

    return {"forward": frozen}


def alternating_updates(module: Any) -> Attributes:
    """The coefficients that mix several streams."""
    coefficients = type(module).compute_router_modalities
    return {"compute_router_modalities": lambda x: coefficients(module, x).detach()}


def per_layer_gate(module: Any) -> Attributes:
    """The gate of a per-layer input: what it multiplies is frozen, so the block stays linear in its stream."""
    return {"act_fn": Scaled(module.act_fn)} if hasattr(module, "per_layer_input_gate") else {}


def per_layer_inputs(module: Any) -> Attributes:
    """Per-layer inputs, which are a frozen factor."""
    if not hasattr(module, "project_per_layer_inputs"):
        return {}
    project = type(module).project_per_layer_inputs
    return {"project_per_layer_inputs": lambda *args, **options: project(module, *args, **options).detach()}


def delta_rule(function: Any) -> Any:
    """The gated delta rule, linear in its values once all else is frozen."""

    def frozen(q: Any, k: Any, v: Any, g: Any, beta: Any, **options: Any) -> Any:
        return function(q.detach(), k.detach(), v, g=g.detach(), beta=beta.detach(), **options)

    return frozen


def convolution(function: Any) -> Any:
    """A causal convolution, which is linear, and its silu, whose slope is frozen."""

    def frozen(x: Any, weight: Any, bias: Any = None, activation: Any = None, **options: Any) -> Any:
        assert activation == "silu"
        z = function(x, weight, bias, activation=None, **options)
        return z * torch.sigmoid(z).detach()

    return frozen


SHARED: dict[str, Callable[[Any], Any]] = {
    "torch_chunk_gated_delta_rule": delta_rule,
    "causal_conv1d_fn": convolution,
}


def replacements(module: torch.nn.Module, up: Up, through_gate: float) -> Attributes:
    """What stands in for attributes of `module`; nothing for most modules."""
    name = type(module).__name__
    if name == "NewGELUActivation":  # its tanh form, written out; `oracle.Freeze` knows the function
        return {"forward": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}
    if name == "Llama4TextExperts":
        return experts_of_all_tokens(module, up)
    if name == "GptOssExperts":
        return clipped_experts(module, up, through_gate)
    if name.endswith("Experts"):
        return experts(module, up)
    if name == "Gemma3nTextMLP":
        return sparse_mlp(module, up, through_gate)
    if name.endswith("RMSNormGated"):
        return gated_norm(module)
    if name.endswith("AltUp"):
        return alternating_updates(module)
    return {**per_layer_gate(module), **per_layer_inputs(module)}


@contextlib.contextmanager
def replaced(model: torch.nn.Module, up: Up, through_gate: float) -> Iterator[None]:
    """Put the replacements of all modules in their place for a while."""
    with contextlib.ExitStack() as stack:
        for module in list(model.modules()):
            for name, value in replacements(module, up, through_gate).items():
                stack.enter_context(_attribute(module, name, value))
        for file in {sys.modules[type(module).__module__] for module in model.modules()}:
            for name, frozen in SHARED.items():
                if hasattr(file, name):
                    stack.enter_context(_attribute(file, name, frozen(getattr(file, name))))
        yield


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name, getattr(owner, "_modules", {}).get(name))
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)
