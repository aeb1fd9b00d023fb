"""Folders of safetensors: one file, shards under an index, and weights that are quantised."""

import copy
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import jaxlin
from benchmarks.fuzz.draws import TEXTS, Draw, json_text
from benchmarks.fuzz.readers import reader
from benchmarks.fuzz.samples import CONFIGS, KEYS, tensors
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.safetensors import DTYPES, SafetensorsFile

NAMES = {kind: name for name, kind in DTYPES.items()}


def packed_bytes(arrays: Mapping[str, np.ndarray], metadata: Any = None) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a valid file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset, parts = 0, []
    for name, array in arrays.items():
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        parts.append(array.tobytes())
        offset += array.nbytes
    return header, b"".join(parts)


def file_bytes(draw: Draw, header: dict[str, Any], data: bytes) -> bytes:
    """The bytes of a file, at times with a wrong length of its header."""
    text = draw.text_of(header)
    length = draw.integer() % 2**64 if draw.rarely(0.02) else len(text)
    return struct.pack("<Q", length) + text + data


def other_header(draw: Draw, header: dict[str, Any]) -> dict[str, Any]:
    """A header with dtypes, shapes or offsets that its data do not have, or with names that no model has."""
    header = {name: dict(entry) if isinstance(entry, dict) else entry for name, entry in header.items()}
    name = draw.choice(list(header))
    entry, change = header[name], draw.randrange(6)
    if change == 0:
        return draw.json_like(header, ["dtype", "shape", "data_offsets", "__metadata__"])
    if change == 1:
        header[draw.choice(TEXTS)] = header.pop(name)
    elif change == 2:
        entry["shape"] = [draw.axis() for _ in range(draw.choice([0, 1, 2, 3, 33, 70]))]
    elif change == 3:  # no values, along axes that are anything
        header[draw.choice([name, "empty"])] = {"dtype": "F32", "shape": [draw.axis(), 0], "data_offsets": [0, 0]}
    elif change == 4:
        entry["data_offsets"] = [draw.axis(), draw.axis()]
    else:
        entry["dtype"] = draw.choice([*DTYPES, "F4", "f32", "Q8_0"])
    return header


def other_arrays(draw: Draw, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of which one or two are missing, renamed, of another shape or dtype, or not finite."""
    arrays = dict(arrays)
    for _ in range(draw.choice([1, 1, 2])):
        name = draw.choice(list(arrays))
        array, change = arrays[name], draw.randrange(7)
        if change == 0 and len(arrays) > 1:
            del arrays[name]
        elif change == 1:
            arrays[draw.choice([*TEXTS, f"model.{name}", name.replace("0", "5")])] = arrays.pop(name)
        elif change == 2:
            kind = draw.choice(list(NAMES))
            with np.errstate(all="ignore"):
                arrays[name] = array.astype(np.float32).astype(kind) if array.dtype != kind else array
        elif change == 3:
            arrays[name] = array.reshape(draw.choice([(-1,), (1, *array.shape), array.shape[::-1], (*array.shape, 1)]))
        elif change == 4:
            arrays[name] = array[: draw.randrange(3)] if array.ndim else array
        elif change == 5:
            arrays[name] = np.zeros([draw.randrange(4) for _ in range(draw.randrange(5))], array.dtype)
        elif array.size:
            raw = bytearray(array.tobytes())
            raw[draw.randrange(len(raw))] = draw.choice([0, 0x7F, 0x80, 0xFF])
            arrays[name] = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
    return arrays


def loading(folder: Path) -> Callable[[], Any]:
    """Load a folder, and run one forward pass if it loads."""

    def read() -> None:
        model, _ = jaxlin.load(folder)
        repr(model)

    return read


@reader(4)
def safetensors(draw: Draw, folder: Path) -> Callable[[], Any]:
    """One file, of which each tensor is read in full and in parts."""
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones((2, 0), ml_dtypes.bfloat16)}
    arrays["c"] = np.ones((), np.int8)
    header, data = packed_bytes(arrays, {"format": "pt"} if draw.rarely(0.5) else None)
    path = folder / "x.safetensors"
    if draw.rarely(0.01):
        os.mkfifo(path)
    else:
        changed = file_bytes(draw, other_header(draw, header) if draw.rarely(0.8) else header, data)
        path.write_bytes(draw.bytes_like(changed) if draw.rarely(0.15) else changed)
    parts = [slice(None), slice(1, 2), slice(None, None, -1), slice(5, 1), slice(0, 0), slice(-1, None, -2)]
    index = tuple(draw.choice(parts) for _ in range(draw.randrange(3)))

    def read() -> None:
        file = SafetensorsFile(path)
        for name in file.names():
            file.read(name)
            file.read_slice(name, index[: len(file.shape(name))])

    return read


@reader(2)
def folder(draw: Draw, folder: Path) -> Callable[[], Any]:
    """A checkpoint with its config and tensors."""
    name = draw.choice(list(CONFIGS))
    config, arrays = CONFIGS[name], tensors(name)
    change = draw.randrange(3)
    header, data = packed_bytes(other_arrays(draw, arrays) if change == 0 else arrays)
    header = other_header(draw, header) if change == 1 else header
    config = draw.json_like(config, KEYS, max_changes=2) if change == 2 else config
    (folder / "config.json").write_bytes(draw.text_of(config))
    (folder / "model.safetensors").write_bytes(file_bytes(draw, header, data))
    return loading(folder)


@reader(2)
def index(draw: Draw, folder: Path) -> Callable[[], Any]:
    """Shards whose names lead elsewhere or nowhere, with links, and with tensors in two files."""
    for name, tensor in (("one", "a"), ("two", "b"), ("three", "a")):
        header, data = packed_bytes({tensor: np.ones(2, np.float32)})
        (folder / f"{name}.safetensors").write_bytes(file_bytes(draw, header, data))
    (folder / "config.json").write_text("{}")
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    for name, target in (("same", "one.safetensors"), ("loop", "loop.safetensors"), ("gone", "nothing"), ("out", "/")):
        os.symlink(target, folder / f"{name}.safetensors")
    files = [path.name for path in sorted(folder.iterdir())] + TEXTS + ["./one.safetensors", "one.safetensors/"]
    names = ["a", "b", *TEXTS]
    weight_map = {draw.choice(names): draw.choice(files) for _ in range(draw.randint(1, 4))}
    index: Any = {"metadata": {"total_size": 8}, "weight_map": weight_map}
    index = draw.json_like(index, ["weight_map"]) if draw.rarely(0.4) else index
    (folder / "model.safetensors.index.json").write_bytes(draw.text_of(index))

    def read() -> None:
        opened = CheckpointFolder(folder)
        for name in opened.names():
            opened.read(name)

    return read


def quantised(method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config and tensors with the matrices of the layers quantised; quant states are still objects."""
    config = {**CONFIGS["qwen3"], "hidden_size": 64, "head_dim": 32}
    draw = np.random.default_rng(1)
    widths = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64)}
    widths |= {
        "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (64, 64),
        "mlp.up_proj": (64, 64),
        "mlp.down_proj": (64, 64),
    }
    arrays: dict[str, Any] = {"model.norm.weight": np.ones(64, np.float32)}
    arrays |= {f"{name}.weight": np.ones((48, 64), np.float32) for name in ("model.embed_tokens", "lm_head")}
    settings = copy.deepcopy(QUANTISATIONS[method])
    for layer in range(2):
        before = f"model.layers.{layer}."
        norms = {"input_layernorm": 64, "post_attention_layernorm": 64, "self_attn.q_norm": 32, "self_attn.k_norm": 32}
        arrays |= {f"{before}{name}.weight": np.ones(size, np.float32) for name, size in norms.items()}
        for module, shape in widths.items():
            name, count = before + module, shape[0] * shape[1]
            if method in ("nf4", "double"):
                state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(shape)}
                arrays[f"{name}.weight"] = draw.integers(0, 256, (count // 2, 1), np.uint8)
                arrays[f"{name}.weight.quant_map"] = np.linspace(-1, 1, 16, dtype=np.float32)
                if method == "double":
                    state |= {"nested_blocksize": 256, "nested_offset": 0.1, "nested_dtype": "float32"}
                    arrays[f"{name}.weight.absmax"] = draw.integers(0, 256, count // 64, np.uint8)
                    arrays[f"{name}.weight.nested_absmax"] = np.ones(-(-count // 64 // 256), np.float32)
                    arrays[f"{name}.weight.nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
                else:
                    arrays[f"{name}.weight.absmax"] = np.ones(count // 64, np.float32)
                arrays[f"{name}.weight.quant_state.bitsandbytes__nf4"] = state
            elif method == "int8":
                arrays |= {
                    f"{name}.weight": draw.integers(-127, 128, shape, np.int8),
                    f"{name}.SCB": np.ones(shape[0], np.float32),
                }
                arrays[f"{name}.weight_format"] = np.zeros((), np.uint8)
            elif method in ("gptq", "awq"):
                out, columns = shape
                words = (columns // 8, out) if method == "gptq" else (columns, out // 8)
                arrays[f"{name}.qweight"] = draw.integers(0, 2**31, words).astype(np.int32)
                arrays[f"{name}.qzeros"] = draw.integers(0, 2**31, (2, out // 8)).astype(np.int32)
                arrays[f"{name}.scales"] = np.ones((2, out), np.float16)
                arrays |= {f"{name}.g_idx": np.arange(columns, dtype=np.int32) // 32} if method == "gptq" else {}
            else:
                kind = np.int8 if method == "integers" else ml_dtypes.float8_e4m3fn
                arrays[f"{name}.weight"] = draw.integers(-9, 9, shape).astype(kind)
                suffix, scales = ("_inv", (-(-shape[0] // 32), 2)) if method == "fp8" else ("", (shape[0], 1))
                arrays[f"{name}.weight_scale{suffix}"] = np.ones(scales, np.float32)
    return {**config, "quantization_config": settings}, arrays


def with_states(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors whose quant states are JSON text in bytes, as bitsandbytes writes them."""

    def stored(value: Any) -> np.ndarray:
        if isinstance(value, np.ndarray):
            return value
        return np.frombuffer(json_text(value).encode("utf-8", "surrogatepass"), np.uint8)

    return {name: stored(value) for name, value in arrays.items()}


def _group(kind: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel"}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
    }


QUANTISATIONS: dict[str, dict[str, Any]] = {
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "double": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [32, 32]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "floats": _group("float"),
    "integers": _group("int"),
}
"""The ``quantization_config`` of each method. A new one gets a line here, and its tensors in `quantised`."""

QUANTISED_KEYS = [
    "quant_method",
    "load_in_8bit",
    "weight_block_size",
    "block_structure",
    "strategy",
    "transform_config",
    "bits",
    "group_size",
]


@reader(2)
def quantized(draw: Draw, folder: Path) -> Callable[[], Any]:
    """Quantised weights with changed states, scales, blocks and settings."""
    config, arrays = quantised(draw.choice(list(QUANTISATIONS)))
    settings = config["quantization_config"]
    states = [name for name, array in arrays.items() if isinstance(array, dict)]
    if states and draw.rarely(0.4):
        name = draw.choice(states)
        arrays[name] = draw.json_like(
            arrays[name], ["nested_blocksize", "nested_offset", "blocksize", "shape", "dtype"]
        )
    elif "config_groups" in settings and draw.rarely(0.5):
        block = draw.choice([[32, 32], [draw.axis(), draw.axis()], [draw.value(), draw.value()], draw.value()])
        weights = {**settings["config_groups"]["group_0"]["weights"], "strategy": "block", "block_structure": block}
        settings = {**settings, "config_groups": {"group_0": {"weights": weights}}}
    elif draw.rarely(0.4):
        settings = draw.json_like(settings, QUANTISED_KEYS, max_changes=2)
    arrays = with_states(arrays)
    if draw.rarely(0.4):
        layer = {name: array for name, array in arrays.items() if ".0." in name}
        arrays = {name: array for name, array in arrays.items() if name not in layer} | other_arrays(draw, layer)
    (folder / "config.json").write_bytes(draw.text_of({**config, "quantization_config": settings}))
    (folder / "model.safetensors").write_bytes(file_bytes(draw, *packed_bytes(arrays)))
    return loading(folder)
