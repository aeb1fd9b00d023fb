"""Checkpoints of gpt-oss whose experts are in MXFP4."""

import json
from pathlib import Path

import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors


def pack_experts(source: Path, folder: Path) -> Path:
    """Write a checkpoint with its experts in MXFP4, and into ``folder/values`` one with the values that they decode to.

    The blocks are drawn: their scales are those of weights of order 0.1.
    """
    draw = torch.Generator().manual_seed(0)
    packed, values = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        packed[name] = values[name] = tensor
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, width, rows = tensor.shape
            blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), dtype=torch.uint8, generator=draw)
            scales = torch.randint(122, 125, blocks.shape[:-1], dtype=torch.uint8, generator=draw)
            del packed[name]
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            values[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    config = json.loads((source / "config.json").read_text())
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    for path, tensors, extra in (
        (folder, packed, {"quantization_config": quantization}),
        (folder / "values", values, {}),
    ):
        path.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps({**config, **extra}))
        tiny.write_tokenizer(path)
    return folder
