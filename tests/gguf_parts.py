"""The tensors of a checkpoint taken apart as llama.cpp's converter does, under the names that it looks up, and back."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]
FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_bias)?")

STAY_FUSED = ("mistral4", "gemma4")
"""Architectures whose experts have gate and up in one tensor, as Hugging Face's checkpoints have them."""


def halves(name: str, values: np.ndarray) -> list[np.ndarray]:
    """Gate and up of a fused tensor, ``[E, 2f, ...]``: alternating in gpt-oss, one after the other elsewhere."""
    return [values[:, ::2], values[:, 1::2]] if ".mlp." in name else np.split(values, 2, axis=1)


def joined(name: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The inverse of `halves`."""
    if ".mlp." not in name:
        return np.concatenate([gate, up], axis=1)
    return np.stack([gate, up], axis=2).reshape(len(gate), -1, *gate.shape[2:])


def taken_apart(tensors: Tensors, arch: str, config: Mapping[str, Any], *, joint: bool = False) -> dict[str, Any]:
    """The tensors with fused experts as weights of gate, up and down, and with latents' keys and values by head.

    Experts that are fused are transposed, ``[E, in, out]``; but for those of `STAY_FUSED`. Files with
    `joint` keys and values have both in one tensor.
    """
    apart: dict[str, Any] = {}
    for name, values in tensors.items():
        fused = FUSED.fullmatch(name)
        if fused and arch in STAY_FUSED:
            apart[f"{name}.weight"] = values
        elif fused:
            module, projection, bias = fused.groups()
            kind, matrix = ("bias", values) if bias else ("weight", values.swapaxes(1, 2))
            parts = halves(name, matrix) if projection == "gate_up_proj" else [matrix]
            names = ("gate_proj", "up_proj") if len(parts) == 2 else (projection,)
            apart |= {f"{module}.{part}.{kind}": each for part, each in zip(names, parts, strict=True)}
        elif name.endswith(".kv_b_proj.weight") and not joint:
            k, v = by_head(values, config)
            apart |= {name.replace("kv_b", "k_b"): k.swapaxes(1, 2), name.replace("kv_b", "v_b"): v}
        elif name.endswith("e_score_correction_bias"):
            apart[name.replace("_bias", ".bias")] = values
        elif name.endswith(".sinks"):
            apart[f"{name}.weight"] = values
        else:
            apart[name] = values
    return {name: np.ascontiguousarray(values) for name, values in apart.items()}


def by_head(values: np.ndarray, config: Mapping[str, Any]) -> list[np.ndarray]:
    """The keys and the values of each head, ``[h, out, rank]``."""
    rows = values.reshape(config["num_attention_heads"], -1, values.shape[-1])
    return np.split(rows, [config["qk_nope_head_dim"]], axis=1)


def put_together(tensors: Tensors, arch: str) -> dict[str, np.ndarray]:
    """The inverse of `taken_apart`."""
    together: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        module, _, kind = name.rpartition(".")
        if arch in STAY_FUSED and FUSED.fullmatch(module):
            together[module] = values
        elif arch in ("llama4", "gpt-oss") and (expert := re.fullmatch(r"(.*\.experts)\.(\w+)_proj", module)):
            if expert[2] == "up":
                continue
            matrix = joined(name, values, tensors[name.replace("gate", "up")]) if expert[2] == "gate" else values
            matrix = matrix if kind == "bias" else matrix.swapaxes(1, 2)
            fused = "gate_up_proj" if expert[2] == "gate" else "down_proj"
            together[f"{expert[1]}.{fused}{'_bias' if kind == 'bias' else ''}"] = matrix
        elif name.endswith(".k_b_proj.weight"):
            both = [values.swapaxes(1, 2), tensors[name.replace("k_b", "v_b")]]
            together[name.replace("k_b", "kv_b")] = np.concatenate(both, axis=1).reshape(-1, values.shape[1])
        elif name.endswith("e_score_correction.bias"):
            together[name.replace(".bias", "_bias")] = values
        elif name.endswith(".sinks.weight"):
            together[module] = values
        elif not name.endswith(".v_b_proj.weight"):
            together[name] = values
    return {name: np.ascontiguousarray(values) for name, values in together.items()}


def head_parts(config: Mapping[str, Any]) -> list[int]:
    """How many rows a query, a key, the values and the gates of a key head take in Qwen3-Next's ``in_proj_qkvz``."""
    value = config["linear_num_value_heads"] // config["linear_num_key_heads"] * config["linear_value_head_dim"]
    return [config["linear_key_head_dim"]] * 2 + [value] * 2


def with_gates_apart(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors with Qwen3-Next's ``in_proj_qkvz`` as ``in_proj_qkv`` and ``in_proj_z``, as its converter has it."""
    apart = {}
    for name, values in tensors.items():
        module, _, tensor = name.partition(".in_proj_qkvz.")
        if not tensor:
            apart[name] = values
            continue
        by_head = values.reshape(config["linear_num_key_heads"], -1, values.shape[1])
        parts = np.split(by_head, np.cumsum(head_parts(config))[:-1], axis=1)
        q, k, v, z = (part.reshape(-1, values.shape[1]) for part in parts)
        apart |= {f"{module}.in_proj_qkv.weight": np.concatenate([q, k, v]), f"{module}.in_proj_z.weight": z}
    return apart


def with_gates_among(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors as before `with_gates_apart`."""
    if config["model_type"] != "qwen3_next":
        return dict(tensors)
    among = {}
    for name, values in tensors.items():
        module, _, tensor = name.partition(".in_proj_qkv.")
        if tensor:
            heads, both = config["linear_num_key_heads"], head_parts(config)
            whole = np.concatenate([values, tensors[f"{module}.in_proj_z.weight"]])
            parts = np.split(whole, heads * np.cumsum(both)[:-1])
            by_head = [part.reshape(heads, -1, values.shape[1]) for part in parts]
            among[f"{module}.in_proj_qkvz.weight"] = np.concatenate(by_head, axis=1).reshape(-1, values.shape[1])
        elif ".in_proj_z." not in name:
            among[name] = values
    return among
