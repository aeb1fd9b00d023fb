"""Tiny checkpoints in every quantised format, with the values that the format's own library decodes beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import tiny
import torch
from safetensors.torch import load_file, save_file

from jaxlin.quantized import Affine, FourBit, Int8, PackedMatrix, Scaled

Write = Callable[[str, torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
"""Takes the name and values of a weight; returns the tensors that store it and the values that they stand for."""


def four_bit(kind: str, nested: bool, dtype: torch.dtype) -> Write:
    """Bitsandbytes' NF4 or FP4, by bitsandbytes."""

    def write(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        codes, state = bnb.quantize_4bit(weight.to(dtype), quant_type=kind, compress_statistics=nested)
        parts = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {name: codes, **parts}, bnb.dequantize_4bit(codes, state).float()

    return write


def int8(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Bitsandbytes' int8, by bitsandbytes."""
    codes, scale, _ = bnb.int8_vectorwise_quant(weight.half())
    module = name.removesuffix(".weight")
    parts = {f"{module}.SCB": scale, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return {name: codes, **parts}, bnb.int8_vectorwise_dequant(codes, scale)


def scaled(suffix: str, block: tuple[int, int], shape: str, dtype: torch.dtype = torch.float32) -> Write:
    """float8 with a scale for each block; `shape` says how the scales are written."""

    def write(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        out, width = weight.shape
        high, wide = block[0] or out, block[1] or width
        grid = weight.reshape(out // high, high, width // wide, wide)
        scale = (grid.abs().amax(dim=(1, 3)) / 448).to(dtype)
        codes = (grid / scale[:, None, :, None].float()).to(torch.float8_e4m3fn)
        values = (codes.to(dtype) * scale[:, None, :, None]).float()
        stored_scale = scale.reshape({"grid": scale.shape, "scalar": ()}[shape])
        parts = {f"{name.removesuffix('.weight')}.{suffix}": stored_scale}
        return {name: codes.reshape(out, width), **parts}, values.reshape(out, width)

    return write


def nibbles(words: np.ndarray, bits: int, order: list[int] | None = None) -> np.ndarray:
    """The codes of the last axis put into words of 32 bits, the first in the lowest, or in another `order`."""
    each = 32 // bits
    groups = words.astype(np.uint64).reshape(*words.shape[:-1], -1, each)
    groups = groups[..., order] if order else groups
    return (groups << np.arange(0, 32, bits, dtype=np.uint64)).sum(-1).astype(np.uint32).view(np.int32)


def uniform(weight: torch.Tensor, groups: int, bits: int, kind: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, ``[out, in]``, zero points and scales, ``[out, groups]``, that range from the least to the largest."""
    blocks = weight.numpy().reshape(len(weight), groups, -1)
    low, high = blocks.min(-1), blocks.max(-1)
    scale = ((high - low) / (2**bits - 1)).astype(kind)
    zero = np.clip(np.round(-low / scale.astype(np.float32)), 1, 2**bits - 1).astype(np.int64)
    codes = np.round(blocks / scale.astype(np.float32)[..., None]) + zero[..., None]
    return np.clip(codes, 0, 2**bits - 1).astype(np.int64).reshape(weight.shape), zero, scale


def gptq(size: int, bits: int = 4, *, reordered: bool = False, version: int = 1) -> Write:
    """GPTQ's tensors; of reordered columns each has any of the groups. The values as PyTorch rounds them."""

    def write(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        groups = weight.shape[1] // size if size > 0 else 1
        codes, zero, scale = uniform(weight, groups, bits, np.float16)
        group = np.repeat(np.arange(groups), weight.shape[1] // groups)
        if reordered:
            group = np.random.default_rng(0).permutation(group)
        stored = (zero - 1) % 2**bits if version == 1 else zero
        module = name.removesuffix("weight")
        tensors = {
            "qweight": nibbles(codes, bits).T,
            "qzeros": nibbles(stored.T, bits),
            "scales": scale.T,
            "g_idx": group.astype(np.int32),
        }
        s, z = torch.from_numpy(scale)[:, group], torch.from_numpy(zero)[:, group]
        values = s * (torch.from_numpy(codes) - z)
        return {module + key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in tensors.items()}, values.float()

    return write


def awq(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """AWQ's tensors of version gemm, groups of 32."""
    order, groups = [0, 2, 4, 6, 1, 3, 5, 7], weight.shape[1] // 32
    codes, zero, scale = uniform(weight, groups, 4, np.float16)
    module = name.removesuffix("weight")
    tensors = {"qweight": nibbles(codes.T, 4, order), "qzeros": nibbles(zero.T, 4, order), "scales": scale.T}
    differences = (torch.from_numpy(codes).reshape(len(codes), groups, -1) - torch.from_numpy(zero)[..., None]).half()
    values = (differences * torch.from_numpy(scale)[..., None]).reshape(weight.shape)
    return {module + key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in tensors.items()}, values.float()


def pack_quantized(size: int, dtype: torch.dtype, *, symmetric: bool = True, reordered: bool = False) -> Write:
    """The tensors of compressed-tensors' pack-quantized of 4 bits; integers are stored from -8 on."""

    def write(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        groups = weight.shape[1] // size if size > 0 else 1
        codes, zero, scale = uniform(weight, groups, 4, np.float32)
        zero = np.full_like(zero, 8) if symmetric else zero
        group = np.repeat(np.arange(groups), weight.shape[1] // groups)
        group = np.random.default_rng(0).permutation(group) if reordered else group
        scales = torch.from_numpy(scale).to(dtype)
        tensors = {
            "weight_packed": torch.from_numpy(nibbles(codes, 4)),
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = torch.from_numpy(nibbles(zero.T, 4).T.copy())
        if reordered:
            tensors["weight_g_idx"] = torch.from_numpy(group.astype(np.int32))
        integers, zeros = (torch.from_numpy(a - 8).to(dtype) for a in (codes, zero))
        values = (integers - zeros[:, group]) * scales[:, group]
        return {name.removesuffix("weight") + key: a for key, a in tensors.items()}, values.float()

    return write


BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}

BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}

CHANNEL = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, "true_sequential": True}

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}

COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]}


def packed_config(**weights: Any) -> dict[str, Any]:
    """The config of pack-quantized."""
    arguments = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "actorder": None, **weights}
    groups = {"group_0": {"weights": arguments, "input_activations": None, "targets": ["Linear"]}}
    return {**COMPRESSED, "format": "pack-quantized", "config_groups": groups}


FORMATS: dict[str, tuple[Write, dict[str, Any], type[PackedMatrix]]] = {
    "nf4": (four_bit("nf4", False, torch.float32), BNB4, FourBit),
    "nf4, nested": (four_bit("nf4", True, torch.float32), BNB4, FourBit),
    "nf4, nested, bfloat16": (four_bit("nf4", True, torch.bfloat16), BNB4, FourBit),
    "fp4": (four_bit("fp4", False, torch.float16), BNB4, FourBit),
    "fp4, nested": (four_bit("fp4", True, torch.float32), BNB4, FourBit),
    "int8": (int8, BNB8, Int8),
    "fp8": (scaled("weight_scale_inv", (32, 32), "grid"), FP8, Scaled),
    "fp8, one scale": (
        scaled("weight_scale_inv", (0, 0), "scalar"),
        {**FP8, "activation_scheme": "static", "weight_block_size": None},
        Scaled,
    ),
    "compressed-tensors": (
        scaled("weight_scale", (1, 0), "grid", torch.bfloat16),
        {**COMPRESSED, "config_groups": {"group_0": {"weights": CHANNEL, "targets": ["Linear"]}}},
        Scaled,
    ),
    "gptq": (gptq(32), GPTQ, Affine),
    "gptq, reordered": (gptq(32, reordered=True), {**GPTQ, "desc_act": True}, Affine),
    "gptq, one group, v2": (gptq(-1, version=2), {**GPTQ, "group_size": -1, "checkpoint_format": "gptq_v2"}, Affine),
    "gptq, 8 bits": (gptq(32, 8), {**GPTQ, "bits": 8}, Affine),
    "awq": (awq, AWQ, Affine),
    "pack-quantized": (pack_quantized(32, torch.bfloat16), packed_config(group_size=32), Affine),
    "pack-quantized, asymmetric": (
        pack_quantized(-1, torch.float16, symmetric=False),
        packed_config(strategy="channel", group_size=None, symmetric=False),
        Affine,
    ),
    "pack-quantized, reordered": (
        pack_quantized(32, torch.float32, symmetric=False, reordered=True),
        packed_config(group_size=32, symmetric=False, actorder="group"),
        Affine,
    ),
}


def quantise(
    source: Path,
    folder: Path,
    write: Write,
    quantization: dict[str, Any],
    of: Callable[[torch.Tensor], bool] = lambda weight: True,
) -> Path:
    """Write the checkpoint `source` to `folder` with the matrices of its blocks quantised, or those that `of` takes.

    ``folder/values`` receives a plain checkpoint with the values that they stand for.
    """
    tensors = load_file(source / "model.safetensors")
    packed, values = {}, {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and (".layers." in name or ".h." in name) and of(tensor):
            # GPT-2 stores its weights transposed. What quantises them transposes them first.
            weight = tensor.float().T if ".h." in name else tensor.float()
            parts, values[name] = write(name, weight.contiguous())
            values[name] = values[name].T.contiguous() if ".h." in name else values[name]
            packed |= {key: part.contiguous() for key, part in parts.items()}
        else:
            packed[name] = values[name] = tensor
    config = json.loads((source / "config.json").read_text())
    for path, contents, extra in (
        (folder, packed, {"quantization_config": quantization}),
        (folder / "values", values, {}),
    ):
        path.mkdir(exist_ok=True)
        save_file(contents, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps({**config, **extra}))
        tiny.write_tokenizer(path)
    return folder


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Change the tensors of the checkpoint in `folder`, and return `folder`."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return folder


def unquantise(folder: Path, module: str) -> torch.Tensor:
    """Store one module of `folder` as a plain bfloat16 weight again, and return that weight."""
    plain = load_file(folder / "values" / "model.safetensors")[f"{module}.weight"].bfloat16()

    def restore(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith(module)]:
            del tensors[key]
        tensors[f"{module}.weight"] = plain

    damaged(folder, restore)
    return plain
