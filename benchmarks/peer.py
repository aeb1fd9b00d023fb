"""The peer: a transformers model whose nonlinear factors are detached, so that autograd gives the local linear map.

It freezes what the rule ``gate`` freezes, as someone who knows PyTorch would: with an attention function of its own,
with forwards of its own for norms and MLPs, and with no graph through queries, keys and gates, which have no
derivative.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModel

NAME = "detached"


def detached(folder: Path) -> Any:
    """The model without its unembedding, in float32."""
    AttentionInterface.register(NAME, _attention)
    model = AutoModel.from_pretrained(folder, attn_implementation=NAME, dtype=torch.float32).eval()
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_norm, module)
        elif hasattr(module, "gate_proj"):
            module.forward = functools.partial(_mlp, module)
        elif name.endswith(("q_proj", "k_proj")):
            module.register_forward_pre_hook(lambda module, arguments: (arguments[0].detach(),))
    return model


def output(model: Any, x: torch.Tensor) -> torch.Tensor:
    """The last position after the final norm, ``[d]``, of the embeddings ``[t, d]``."""
    return model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0, -1]


def vectorized(model: Any, x: torch.Tensor) -> torch.Tensor:
    """J by ``torch.autograd.functional.jacobian``, ``[d, t, d]``."""
    rows: Any = torch.autograd.functional.jacobian(functools.partial(output, model), x, vectorize=True)
    return rows


def jacrev(model: Any, x: torch.Tensor) -> torch.Tensor:
    """J by ``torch.func.jacrev``, ``[d, t, d]``."""
    return torch.func.jacrev(functools.partial(output, model))(x)


def backward(model: Any, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """What each token contributes to a direction of the output, ``[t]``: a forward and a backward pass."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(output(model, x) @ direction, x)
    return (gradient * x.detach()).sum(-1)


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    root = torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    return module.weight * (x * root)


def _mlp(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(module.act_fn(module.gate_proj(x.detach())) * module.up_proj(x))


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    batch, heads, tokens, features = query.shape
    groups = heads // key.shape[1]
    query = query.detach().reshape(batch, -1, groups, tokens, features)
    scores = query @ key.detach()[:, :, None].mT * scaling
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    pattern = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    mixed = (pattern @ value[:, :, None]).reshape(batch, heads, tokens, -1)
    return mixed.transpose(1, 2).contiguous(), None
