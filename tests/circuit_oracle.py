"""What components write and how they read, by autograd of an unmodified transformers model whose factors are frozen."""

import functools
import inspect
import sys
from typing import Any, NamedTuple

import numpy as np
import oracle
import tiny
import torch

POSITION, TOKEN = 11, 9


class Modules(NamedTuple):
    """The modules of a block that a component reads through, and its norm after attention, by name."""

    attention_input: str
    mlp_input: str
    attention_norm: str | None = None


MODULES = {
    "llama, biases": Modules("input_layernorm", "post_attention_layernorm"),
    "gemma2": Modules("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm"),
    "olmo2": Modules("self_attn", "mlp", "post_attention_layernorm"),
}


SHARED_VALUES = {
    "gemma4_text, per layer": Modules("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm"),
    "gemma3n_text": Modules("self_attn", "pre_feedforward_layernorm", "post_attention_layernorm"),
}
"""Those of models with per-layer embeddings, whose last layers read the values of earlier ones: one with factors of the
stream, and one with several streams."""


class CircuitOracle:
    """An unmodified transformers model whose factors are frozen, with a probe at one component's input at a time."""

    def __init__(self, model: Any, modules: Modules) -> None:
        self.model, self.modules = model, modules
        self.blocks = oracle.body(model).layers
        self.heads, self.features = model.config.num_attention_heads, model.config.hidden_size
        self.ids = torch.tensor([tiny.IDS])
        self.x = model.get_input_embeddings()(self.ids).detach()
        rows = getattr(oracle.body(model), "get_per_layer_inputs", None)
        takes_x = rows is not None and "inputs_embeds" in inspect.signature(rows).parameters
        self.inputs = {} if rows is None else {"per_layer_inputs": rows(self.ids, *[self.x] * takes_x).detach()}
        kinds, config = getattr(model.config, "layer_types", None), model.config
        first_shared = len(self.blocks) - getattr(config, "num_kv_shared_layers", 0)
        self.value_layers = [
            layer if layer < first_shared else max(i for i in range(first_shared) if kinds[i] == kinds[layer])
            for layer in range(len(self.blocks))
        ]

    def writes(self) -> list[torch.Tensor]:
        """What the embeddings, heads, MLPs and per-layer embeddings add, ``[t, d]`` each, in the order of the pass."""
        values: dict[tuple[int, str], torch.Tensor] = {}
        hooks = []
        for layer, block in enumerate(self.blocks):
            norm = getattr(block, self.modules.attention_norm or "", block.self_attn.o_proj)
            last = getattr(block, "post_feedforward_layernorm", block.mlp)
            keep = functools.partial(self._keep, values)
            hooks += [
                block.self_attn.o_proj.register_forward_hook(functools.partial(keep, key=(layer, "o_proj"))),
                norm.register_forward_hook(functools.partial(keep, key=(layer, "norm"))),
                last.register_forward_hook(functools.partial(keep, key=(layer, "mlp"))),
            ]
            if self.inputs:
                rows = block.post_per_layer_input_norm
                hooks.append(rows.register_forward_hook(functools.partial(keep, key=(layer, "per_layer"))))
        with torch.no_grad():
            self.model(inputs_embeds=self.x, use_cache=False, **self.inputs)
        for hook in hooks:
            hook.remove()
        written = [self.x[0]]
        for layer, block in enumerate(self.blocks):
            z, (norm_in, norm_out) = values[layer, "o_proj"][0], values[layer, "norm"]
            parts = z.reshape(len(z), self.heads, -1)
            weight = block.self_attn.o_proj.weight.reshape(self.features, self.heads, -1)
            by_head = torch.einsum("thk,dhk->htd", parts, weight).detach()
            # A frozen RMSNorm multiplies each feature.
            scale = norm_out / norm_in if self.modules.attention_norm else 1.0
            written += [*(by_head * scale), values[layer, "mlp"][1]]
            written += [values[layer, "per_layer"][1]] if self.inputs else []
        return written

    @staticmethod
    def _keep(values: Any, module: Any, inputs: Any, output: Any, *, key: Any) -> None:
        values[key] = (inputs[0][0].detach(), output[0].detach())

    def read(self, layer: int, part: int | str) -> np.ndarray:
        """The gradient of the logit in what one component reads, through it alone, ``[t, d]``.

        Args:
            layer: its layer.
            part: the number of a head, ``"mlp"`` or ``"per_layer"``.
        """
        probe = torch.zeros_like(self.x).requires_grad_()
        source, name = self._reader(layer, part)

        def add(module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (args[0] + probe, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + probe}

        def only_head(module: Any, args: Any, *, reader: int) -> Any:
            parts = args[0].reshape(*args[0].shape[:-1], self.heads, -1)
            alone = torch.zeros(self.heads, 1).double()
            alone[part] = float(reader == layer)
            return ((alone * parts + (1 - alone) * parts.detach()).reshape(args[0].shape),)

        hooks = [getattr(self.blocks[source], name).register_forward_pre_hook(add, with_kwargs=True)]
        for reader in [] if isinstance(part, str) else [i for i, own in enumerate(self.value_layers) if own == source]:
            only = functools.partial(only_head, reader=reader)
            hooks.append(self.blocks[reader].self_attn.o_proj.register_forward_pre_hook(only))
        logit = self.model(inputs_embeds=self.x, use_cache=False, **self.inputs).logits[0, POSITION, TOKEN]
        for hook in hooks:
            hook.remove()
        return torch.autograd.grad(logit, probe)[0][0].numpy()

    def edges(self, layer: int, part: int | str) -> list[float]:
        """The edge from each of `writes` to a component, past all others.

        In the pass that carries them nothing flows through any component: a probe is added to what each of them adds.
        """
        x, probes, reads = self._past_components
        gradient = torch.tensor(self.read(layer, part))
        taken = (reads[self._reader(layer, part)][0] * gradient).sum()
        gradients = torch.autograd.grad(taken, [x, *probes], retain_graph=True, allow_unused=True)
        own = [gradients[0]]
        for first in range(1, len(gradients), 2 + bool(self.inputs)):
            attention, *others = gradients[first : first + 2 + bool(self.inputs)]
            own += [*[attention] * self.heads, *others]
        return [
            0.0 if each is None else float((each[0] * write).sum())
            for each, write in zip(own, self.writes(), strict=True)
        ]

    def _reader(self, layer: int, part: int | str) -> tuple[int, str]:
        """The layer and the module that a component reads through."""
        if isinstance(part, str):
            return layer, {"mlp": self.modules.mlp_input, "per_layer": "per_layer_input_gate"}[part]
        return self.value_layers[layer], self.modules.attention_input

    @functools.cached_property
    def _past_components(self) -> tuple[torch.Tensor, list[torch.Tensor], dict[tuple[int, str], torch.Tensor]]:
        """The embeddings, a probe in what each component adds, and what each module reads past components."""
        probes, reads, hooks = [], {}, []

        def cut(module: Any, args: Any, output: Any) -> Any:
            own = output[0] if isinstance(output, tuple) else output
            probes.append(torch.zeros_like(own).requires_grad_())
            own = own.detach() + probes[-1]
            return (own, *output[1:]) if isinstance(output, tuple) else own

        def keep(module: Any, args: Any, kwargs: Any, *, key: tuple[int, str]) -> None:
            reads[key] = args[0] if args else kwargs["hidden_states"]

        for layer, block in enumerate(self.blocks):
            last = getattr(block, "post_feedforward_layernorm", block.mlp)
            writers = [getattr(block, self.modules.attention_norm or "self_attn"), last]
            writers += [block.post_per_layer_input_norm] if self.inputs else []
            hooks += [module.register_forward_hook(cut) for module in writers]
            for name in (self.modules.attention_input, self.modules.mlp_input, "per_layer_input_gate"):
                if (module := getattr(block, name, None)) is not None:
                    reader = functools.partial(keep, key=(layer, name))
                    hooks.append(module.register_forward_pre_hook(reader, with_kwargs=True))
        x = self.x.clone().requires_grad_()
        self.model(inputs_embeds=x, use_cache=False, **self.inputs)
        for hook in hooks:
            hook.remove()
        return x, probes, reads

    def scored(self, layer: int, query: int, head: int, key: int) -> list[list[torch.Tensor]]:
        """How the query and the key of a head read the stream, as they enter the scores.

        Returns:
            For the query and for the key the gradients of all features, ``[k, t, d]``, in the stream that the layer
            reads, in the embeddings, and in the biases of all layers times these, ``[k]``.
        """
        attention = self.blocks[layer].self_attn
        module = sys.modules[type(attention).__module__]
        rotate, rotated = module.apply_rotary_pos_emb, []

        def keep(*args: Any, **kwargs: Any) -> Any:
            rotated.append(rotate(*args, **kwargs))
            return rotated[-1]

        def add(block: Any, args: Any) -> Any:
            return (args[0] + probe, *args[1:])

        x, probe = (each.clone().requires_grad_() for each in (self.x, torch.zeros_like(self.x)))
        module.apply_rotary_pos_emb = keep
        hook = self.blocks[layer].register_forward_pre_hook(add)
        try:
            self.model(inputs_embeds=x, use_cache=False)
        finally:
            module.apply_rotary_pos_emb = rotate
            hook.remove()
        queries, keys = rotated[layer]
        group = head * keys.shape[1] // queries.shape[1]
        biases = [each for name, each in self.model.named_parameters() if name.endswith("bias")]
        vectors = []
        for features in (queries[0, head, query], keys[0, group, key]):
            gradients = [
                torch.autograd.grad(feature, [probe, x, *biases], retain_graph=True, allow_unused=True)
                for feature in features
            ]
            by_bias = [
                sum(((slope * bias).sum() for slope, bias in zip(each[2:], biases, strict=True) if slope is not None),
                    torch.zeros(()))
                for each in gradients
            ]  # fmt: skip
            vectors.append([*(torch.cat([each[i] for each in gradients]) for i in (0, 1)), torch.stack(by_bias)])
        return vectors
