"""Quantised weights: held packed, unpacked as their own libraries do, bit for bit."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import jaxlin
from jaxlin.baselines import shuffled_weights
from jaxlin.errors import CheckpointError, ConfigError
from jaxlin.packed import BFloat16, Blocks, FourBit, Int8, Nested, Packed, Scaled
from jaxlin.packed.codes import codes_of_rows, packed_codes, unpacked_codes
from jaxlin.packed.gguf import FLOATS, LAYOUTS, TYPES

Write = Callable[[str, torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
"""The name and values of a weight to the tensors a file holds of it, and the values they stand for."""


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
        kept = scale.reshape({"grid": scale.shape, "scalar": ()}[shape])
        parts = {f"{name.removesuffix('.weight')}.{suffix}": kept}
        return {name: codes.reshape(out, width), **parts}, values.reshape(out, width)

    return write


BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
CHANNEL = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]}

FORMATS: dict[str, tuple[Write, dict[str, Any], type[Packed]]] = {
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
}


def quantise(source: Path, folder: Path, write: Write, said: dict[str, Any]) -> Path:
    """`source` with the matrices of its blocks quantised in `folder`; in ``values/`` what they stand for."""
    tensors = load_file(source / "model.safetensors")
    packed, values = {}, {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and ".layers." in name:
            parts, values[name] = write(name, tensor.float())
            packed |= {key: part.contiguous() for key, part in parts.items()}
        else:
            packed[name] = values[name] = tensor
    config = json.loads((source / "config.json").read_text())
    for path, contents, extra in ((folder, packed, {"quantization_config": said}), (folder / "values", values, {})):
        path.mkdir(exist_ok=True)
        save_file(contents, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps({**config, **extra}))
        tiny.write_tokenizer(path)
    return folder


@pytest.mark.parametrize("form", FORMATS)
def test_format(form: str, checkpoint: Callable[[str], Path], tmp_path: Path, x64: None) -> None:
    """Bit-equal to the reference decoder; the map is that of the dequantised model, exactly."""
    write, said, kind = FORMATS[form]
    folder = quantise(checkpoint("llama, wide"), tmp_path, write, said)
    model, _ = jaxlin.load(folder, linearize=True, dtype="float64")
    weight = model.layers.mlp.down_proj.weight.get_value()
    assert isinstance(weight, kind)
    expected = load_file(folder / "values" / "model.safetensors")
    # Compiled and widened too, as in a model: the compiler would rather not round to 16 bits in between.
    widened = jax.jit(lambda weight: weight[...].astype(jnp.float32))(weight)
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        np.testing.assert_array_equal(np.asarray(weight[...][layer], np.float32), expected[name].float())
        np.testing.assert_array_equal(widened[layer], expected[name].float())

    x = model.embed(tiny.IDS)
    logits = model.unembed(jax.jit(lambda model, x: model(x))(model, x))
    exact = oracle.logits(folder / "values", tiny.IDS, torch.float64)
    np.testing.assert_allclose(logits, exact, atol=1e-10)
    u = np.random.default_rng(0).normal(size=(2, 128))
    held = oracle.held_rows(folder / "values", tiny.IDS, -1, u)
    lmap = jaxlin.local_map(model, x)
    for rows in (lmap.T @ u, np.einsum("ro,otd->rtd", u, lmap.jacobian())):
        np.testing.assert_allclose(rows, held.rows, atol=1e-10 * np.abs(held.rows).max())
    assert lmap.residual <= 1e-13


@pytest.mark.parametrize("form", ["nf4, nested", "int8", "fp8"])
def test_rows_of_a_fused_weight(form: str, checkpoint: Callable[[str], Path], tmp_path: Path, x64: None) -> None:
    """Phi-3 keeps queries, keys and values in one tensor; the packed rows of each are taken apart."""
    write, said, _ = FORMATS[form]
    folder = quantise(checkpoint("phi3, wide"), tmp_path, write, said)
    model, _ = jaxlin.load(folder, dtype="float64")
    logits = model.unembed(model(model.embed(tiny.IDS)))
    np.testing.assert_allclose(logits, oracle.logits(folder / "values", tiny.IDS, torch.float64), atol=1e-10)


def test_written_by_transformers(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """A file that transformers quantised and saved, names and config as it writes them."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    source = checkpoint("llama, wide")
    saved = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, device_map="cpu")
    saved.save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    model, _ = jaxlin.load(tmp_path)
    for name in ("q_proj", "o_proj"):
        stored = getattr(saved.model.layers[1].self_attn, name).weight
        expected = bnb.dequantize_4bit(stored.data, stored.quant_state).float()
        ours = getattr(model.layers.self_attn, name).weight[...][1]
        np.testing.assert_array_equal(np.asarray(ours, np.float32), expected)


@pytest.mark.parametrize("rows", [1, 8, 13])
@pytest.mark.parametrize("bits", [(4,), (4, 1), (8,), (2,), (2, 1), (4, 2)])
def test_codes(rows: int, bits: tuple[int, ...]) -> None:
    """Codes come back from their bytes, all of them and by rows; they take as many bits as they have."""
    codes = np.random.default_rng(0).integers(0, 2 ** sum(bits), (rows, 96)).astype(np.uint8)
    parts = tuple(map(jnp.asarray, packed_codes(codes, 96, bits, lambda raw: raw)))
    if rows == 8:
        assert 8 * sum(part.size for part in parts) == sum(bits) * codes.size
    np.testing.assert_array_equal(unpacked_codes(parts, bits, rows), codes)
    wanted = jnp.asarray([rows - 1, 0])
    np.testing.assert_array_equal(codes_of_rows(parts, bits, wanted), codes[wanted])


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (2, 4), (3, 7), (1, 2)])
def test_rows_that_share_a_byte(start: int, stop: int) -> None:
    """Some rows of a matrix of 4 bits are what they are in the whole, wherever they begin."""
    rng = np.random.default_rng(0)
    table, scales = rng.normal(size=16).astype(np.float32), rng.random((7, 2)).astype(np.float32)
    whole = FourBit.of(rng.integers(0, 256, (7, 64), dtype=np.uint8), scales, table, None, "float32")
    part = whole.rows(start, stop)
    assert part.shape == (stop - start, 128)
    np.testing.assert_array_equal(part[...], whole[...][start:stop])
    np.testing.assert_array_equal(whole[start:stop], whole[...][start:stop])


def row_bytes(kind: str, width: int) -> int:
    """The bytes of a row of a file."""
    return (
        width * np.dtype(FLOATS[kind]).itemsize
        if kind in FLOATS
        else width // LAYOUTS[kind].values * LAYOUTS[kind].size
    )


@pytest.mark.parametrize("form", ["NF4", "int8", "FP8", "GGUF", "GGUF, mixed", "BF16"])
@pytest.mark.parametrize(
    "index",
    [3, -1, slice(5, 2, -1), np.array([4, 4, 0]), np.array([[1], [255]])],
    ids=["one", "last", "slice", "array", "2d"],
)
def test_rows(form: str, index: Any) -> None:
    """Rows are indexed as those of an array are."""
    matrix = jax.tree.map(lambda leaf: leaf[1], layered(form, 2))
    np.testing.assert_array_equal(np.asarray(matrix[index]), np.asarray(matrix[...])[index])


@pytest.mark.parametrize("form", ["NF4", "int8", "FP8", "GGUF", "GGUF, mixed", "BF16"])
def test_what_is_no_index(form: str) -> None:
    """No rows give no rows; columns, and rows of a stack, are refused and not taken for something else."""
    stack = layered(form, 2)
    matrix = jax.tree.map(lambda leaf: leaf[1], stack)
    for none in (np.array([], int), slice(2, 2)):
        assert matrix[none].shape == (0, 256)
    for whole, index in ((matrix, (..., slice(3))), (matrix, (1, 2)), (stack, 1), (stack, np.array([1, 0]))):
        with pytest.raises(IndexError, match=r"expected \[...\], or rows of a single matrix; found"):
            whole[index]


@pytest.mark.parametrize("kind", TYPES)
def test_every_bit_of_ggufs_blocks(kind: str) -> None:
    """Random bytes decode as the gguf library decodes them: all rows, and some."""
    raw = np.random.default_rng(0).integers(0, 256, (13, row_bytes(kind, 512)), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    blocks = Blocks.of(raw, kind, (kind,), 512)
    with np.errstate(all="ignore"):
        found = np.asarray(jax.jit(Blocks.unpack)(blocks))
        some = np.asarray(blocks[np.array([12, 3, -2])])
        finite = blocks.is_finite()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(some, expected[[12, 3, -2]])
    assert finite == np.isfinite(expected).all()
    assert blocks.shape == expected.shape


def test_layers_of_two_types_of_blocks() -> None:
    rng = np.random.default_rng(0)
    kinds = ("Q4_K", "Q6_K")
    raws = {kind: np.abs(rng.integers(0, 60, (4, row_bytes(kind, 256)), dtype=np.uint8)) for kind in kinds}
    layers = [Blocks.of(raws[kind], kind, kinds, 256) for kind in kinds]
    stack = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *layers)
    expected = np.stack([gguf.dequantize(raws[kind], gguf.GGMLQuantizationType[kind]) for kind in kinds])
    np.testing.assert_array_equal(stack[...], expected)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), stack)
    np.testing.assert_array_equal(twice[...], np.stack([expected, expected[::-1]]))
    assert stack.is_finite()
    numbers = tuple(half.at[1, 2, 0].set(np.inf) for half in stack.halves)
    assert not dataclasses.replace(stack, halves=numbers).is_finite()
    one = jax.jit(lambda stack, i: jax.tree.map(lambda a: a[i], stack)[...])
    for i in range(2):
        np.testing.assert_array_equal(one(stack, i), expected[i])
        np.testing.assert_array_equal(layers[i][np.array([3, 1])], expected[i][[3, 1]])


def layered(form: str, depth: int) -> Packed | jax.Array:
    """Random weights of `depth` layers, 256 x 256, in a format."""
    rng = np.random.default_rng(0)

    def codes(dtype: Any, *shape: int) -> np.ndarray:
        return rng.integers(0, 100, shape).astype(dtype)

    made = {
        "NF4": lambda: FourBit(
            codes(np.uint8, depth, 128, 256),
            codes(np.uint8, depth, 256, 4),
            codes(np.float32, depth, 16),
            Nested(
                codes(np.float32, depth, 4),
                codes(np.float32, depth, 256),
                codes(np.float32, depth),
                np.tile(np.arange(256, dtype=np.int32), (depth, 1)),
            ),
            "bfloat16",
        ),
        "int8": lambda: Int8(codes(np.int8, depth, 256, 256), codes(np.float32, depth, 256)),
        "FP8": lambda: Scaled.of(
            codes(ml_dtypes.float8_e4m3fn, depth, 256, 256), codes(np.float32, depth, 2, 2), (128, 128)
        ),
        "GGUF": lambda: Blocks(
            (codes(np.uint8, depth, 128, 256),),
            (codes(np.float16, depth, 256, 1), codes(np.float16, depth, 256, 1)),
            codes(np.uint8, depth, 256, 12),
            codes(np.int32, depth) * 0,
            ("Q4_K",),
            256,
        ),
        "GGUF, mixed": lambda: Blocks(
            (codes(np.uint8, depth, 128, 256), codes(np.uint8, depth, 64, 256)),
            (codes(np.float16, depth, 256, 1), codes(np.float16, depth, 256, 1)),
            codes(np.uint8, depth, 256, 16),
            codes(np.int32, depth) % 2,
            ("Q4_K", "Q6_K"),
            256,
        ),
        "BF16": lambda: BFloat16(codes(np.uint16, depth, 256, 256)),
    }
    return jax.tree.map(jnp.asarray, made[form]())


@pytest.mark.parametrize("form", ["NF4", "int8", "FP8", "GGUF", "BF16"])
@pytest.mark.parametrize("way", ["rows", "jacrev"])
def test_one_layer_at_a_time_is_unpacked(form: str, way: str) -> None:
    """Compiled temporary memory is the same at 4 and at 16 layers: packed weights stay packed."""
    from test_local_map import build

    def temporary(depth: int) -> int:
        model = build(depth, biases=False, linearize=True, size=(256, 256))
        for part in ("gate_proj", "up_proj", "down_proj"):
            getattr(model.layers.mlp, part).weight.set_value(layered(form, depth))
        x = model.embed([1, 2, 3, 4])
        if way == "rows":
            lmap, u = jaxlin.local_map(model, x), jnp.zeros((8, 256))
            lowered = jax.jit(lambda lmap, u: lmap.rmatvec(u)).lower(lmap, u)
        else:
            lowered = jax.jit(jax.jacrev(lambda model, x: model(x)[-1, :8], argnums=1)).lower(model, x)
        analysis: Any = lowered.compile().memory_analysis()
        return analysis.temp_size_in_bytes

    few, many = temporary(4), temporary(16)
    # What a layer keeps for its transpose is its input and what a few tokens give, not its matrices.
    assert many - few <= 0.1 * few, (few, many)


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """`folder` with its tensors changed."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return folder


NAME = "model.layers.0.mlp.up_proj.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"


def text(value: str) -> torch.Tensor:
    """A quant state."""
    return torch.tensor(list(value.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(STATE), "bitsandbytes__nf4.*found none"),
        (lambda t: t.pop(f"{NAME}.absmax"), "up_proj.weight.absmax.*found none"),
        (lambda t: t.update({f"{NAME}.absmax": t[f"{NAME}.absmax"][:-1]}), "up_proj.weight.absmax.*found F32 of shape"),
        (lambda t: t.update({STATE: text("{nf4")}), "expected a JSON object"),
        (lambda t: t.update({STATE: text('{"quant_type": "nf4"}')}), "blocksize"),
        (lambda t: t.update({STATE: text(bytes(t[STATE]).decode().replace("nf4", "int3"))}), "quant_type"),
        (lambda t: t.update({STATE: text(bytes(t[STATE]).decode().replace("128]", "192]"))}), "expected shape"),
        (lambda t: t[f"{NAME}.absmax"].fill_(float("nan")), "up_proj.weight: expected finite"),
        (lambda t: t.update({"model.layers.0.mlp.scale": torch.ones(1)}), "found model.layers.0.mlp.scale"),
    ],
)
def test_a_damaged_quant_state(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = damaged(quantise(checkpoint("llama, wide"), tmp_path, *FORMATS["nf4"][:2]), change)
    with pytest.raises(CheckpointError, match=message):
        jaxlin.load(folder)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ weights are not read"),
        ({"quant_method": "awq"}, "AWQ weights are not read"),
        ({"quant_method": "mxfp4"}, "MXFP4 weights are not read"),
        ({"quant_method": "fbgemm_fp8"}, "FBGEMM FP8 weights are not read"),
        ({"quant_algo": "NVFP4", "producer": {"name": "modelopt"}}, "NVIDIA ModelOpt"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "NVIDIA ModelOpt"),
        ({"group_size": 64, "bits": 4}, "MLX"),
        ({}, "quant_method"),
        ({"quant_method": "new"}, "expected one of bitsandbytes, fp8, compressed-tensors"),
        ({**BNB4, "load_in_4bit": False}, "load_in_4bit"),
        ({**FP8, "weight_block_size": [128]}, "weight_block_size"),
        ({**FP8, "rotate": True}, "rotate"),
        ({**COMPRESSED, "config_groups": {"a": {"weights": {**CHANNEL, "num_bits": 4}}}}, "8 bits"),
    ],
)
def test_methods_that_are_not_read(
    said: dict[str, Any], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = quantise(checkpoint("llama, wide"), tmp_path, FORMATS["fp8"][0], said)
    with pytest.raises(ConfigError, match=message):
        jaxlin.load(folder)


def test_mlx_by_its_own_key(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    config = json.loads((checkpoint("llama, wide") / "config.json").read_text())
    said = {"group_size": 64, "bits": 4}
    for extra in ({"quantization": said}, {"quantization": said, "quantization_config": said}):
        with pytest.raises(ConfigError, match="that of MLX"):
            jaxlin.memory_plan({**config, **extra}, tokens=2)


def test_layers_in_different_formats_are_widened(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Some files leave the matrices of a few layers as they were."""
    folder = quantise(checkpoint("llama, wide"), tmp_path, *FORMATS["int8"][:2])
    values = load_file(folder / "values" / "model.safetensors")

    def restore(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.1.mlp.up_proj"
        del tensors[f"{name}.SCB"], tensors[f"{name}.weight_format"]
        tensors[f"{name}.weight"] = values[f"{name}.weight"]

    with pytest.warns(UserWarning, match="up_proj.weight is not in one format"):
        model, _ = jaxlin.load(damaged(folder, restore))
    expected = np.stack([values[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(2)])
    np.testing.assert_array_equal(model.layers.mlp.up_proj.weight[...], expected)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_packed_weights_are_shuffled_by_value(form: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("llama, bfloat16")
    if form == "int8":
        folder = quantise(checkpoint("llama, wide"), tmp_path, *FORMATS["int8"][:2])
    model, _ = jaxlin.load(folder)
    shuffled = shuffled_weights(model, jax.random.key(0))
    before, after = (np.asarray(m.layers.mlp.up_proj.weight[...]) for m in (model, shuffled))
    assert (before != after).mean() > 0.9
    for layer in range(len(before)):
        np.testing.assert_array_equal(np.sort(before[layer], axis=None), np.sort(after[layer], axis=None))
    assert jaxlin.local_map(shuffled, shuffled.embed([1, 2, 3])).residual <= 3e-6
