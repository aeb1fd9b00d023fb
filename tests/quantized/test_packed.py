"""Quantised weights: held packed, unpacked as their own libraries do, bit for bit."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
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
from quantised_files import (
    AWQ,
    BNB4,
    CHANNEL,
    COMPRESSED,
    FORMATS,
    FP8,
    GPTQ,
    damaged,
    packed_config,
    quantise,
    unquantise,
)
from random_llama import build
from safetensors.torch import load_file, save_file

import jaxlin
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError, ConfigError
from jaxlin.quantized import Affine, BFloat16, FourBit, GGUFBlocks, Int8, MixedStack, NestedScales, PackedMatrix, Scaled
from jaxlin.quantized.codes import codes_of_rows, packed_codes, unpacked_codes
from jaxlin.quantized.gguf import LAYOUTS
from jaxlin.quantized.matrix import _rounded_to_float16
from jaxlin.quantized.methods import quantized_format
from jaxlin.quantized.mixed import StackPlaces, layer_of, split_for_scan
from jaxlin.spectrum.null_baselines import shuffled_weights


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
    held = oracle.frozen_rows(folder / "values", tiny.IDS, -1, u)
    lmap = jaxlin.local_map(model, x)
    for rows in (lmap.T @ u, np.einsum("ro,otd->rtd", u, lmap.jacobian())):
        np.testing.assert_allclose(rows, held.rows, atol=1e-10 * np.abs(held.rows).max())
    assert lmap.residual <= 1e-13


@pytest.mark.parametrize("name", ["phi3, wide", "gpt_neox, wide", "gpt2, wide"])
@pytest.mark.parametrize("form", ["nf4, nested", "int8", "fp8", "gptq, reordered", "awq", "pack-quantized"])
def test_rows_of_a_fused_weight(
    name: str, form: str, checkpoint: Callable[[str], Path], tmp_path: Path, x64: None
) -> None:
    """Phi-3 has queries, keys and values in one tensor, one after the other, and GPT-NeoX has them head by head.

    GPT-2 stores weights transposed, but formats of packed weights do not.
    """
    write, said, _ = FORMATS[form]
    folder = quantise(checkpoint(name), tmp_path, write, said)
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


def test_rounding_to_float16() -> None:
    """As the conversion does, which not every device carries out."""
    drawn = np.random.default_rng(0).normal(size=(7, 20000)).astype(np.float32)
    values = drawn * np.float32(10.0) ** np.arange(-8, 5, 2, dtype=np.float32)[:, None]
    found = jax.jit(_rounded_to_float16)(values)
    np.testing.assert_array_equal(found, np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32))


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


@pytest.mark.parametrize("index", [range(5), range(2, 4), range(3, 7), [1], range(6, -1, -2), [5, 0, 6, 3, 3]], ids=str)
def test_rows_that_share_a_byte(index: Sequence[int]) -> None:
    """Some rows of a matrix of 4 bits are what they are in the whole, wherever they are in a byte."""
    rng = np.random.default_rng(0)
    table, scales = rng.normal(size=16).astype(np.float32), rng.random((7, 2)).astype(np.float32)
    whole = FourBit.from_pairs(rng.integers(0, 256, (7, 64), dtype=np.uint8), scales, table, None, "float32")
    rows = np.array(index)
    part = whole.rows(rows)
    assert part.shape == (len(rows), 128)
    np.testing.assert_array_equal(part[...], whole[...][rows])
    np.testing.assert_array_equal(whole[rows], whole[...][rows])


@pytest.mark.parametrize(
    "index", [range(4, 12), [8, 9, 10, 11, 0, 1, 2, 3], range(12, 14), [3, 1], range(2, 6)], ids=str
)
def test_rows_of_blocks(index: Sequence[int]) -> None:
    """Rows of scaled codes are what they are in the whole; whole blocks keep one scale for each."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(14, 6)).astype(ml_dtypes.float8_e4m3fn)
    whole = Scaled.from_codes(codes, rng.random((4, 2)).astype(np.float32), (4, 3))
    rows = np.array(index)
    part = whole.rows(rows)
    np.testing.assert_array_equal(part[...], whole[...][rows])
    assert part.scale.shape[0] == (-(-len(rows) // 4) if rows[0] % 4 == 0 else len(rows))


def row_bytes(kind: str, width: int) -> int:
    """The bytes of a row of a file."""
    return width // LAYOUTS[kind].values * LAYOUTS[kind].size


@pytest.mark.parametrize("form", ["NF4", "int8", "FP8", "GGUF", "GPTQ", "AWQ", "mixed", "BF16"])
@pytest.mark.parametrize(
    "index",
    [3, -1, slice(5, 2, -1), np.array([4, 4, 0]), np.array([[1], [255]])],
    ids=["one", "last", "slice", "array", "2d"],
)
def test_rows(form: str, index: Any) -> None:
    """Rows are indexed as those of an array are."""
    matrix = layer_of(layered(form, 2), 1)
    np.testing.assert_array_equal(np.asarray(matrix[index]), np.asarray(matrix[...])[index])


@pytest.mark.parametrize("form", ["NF4", "int8", "FP8", "GGUF", "GPTQ", "AWQ", "mixed", "BF16"])
def test_what_is_no_index(form: str) -> None:
    """No rows give no rows; columns, and rows of a stack, are refused and not taken for something else."""
    stack = layered(form, 2)
    matrix = layer_of(stack, 1)
    for none in (np.array([], int), slice(2, 2)):
        assert matrix[none].shape == (0, 256)
    for whole, index in ((matrix, (..., slice(3))), (matrix, (1, 2)), (stack, 1), (stack, np.array([1, 0]))):
        with pytest.raises(
            IndexError, match=r"expected \[...\], one matrix of a stack, or rows of a single matrix; found"
        ):
            whole[index]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_bit_of_ggufs_blocks(kind: str) -> None:
    """Random bytes decode as the gguf library decodes them: all rows, and some, taken packed or not."""
    raw = np.random.default_rng(0).integers(0, 256, (13, row_bytes(kind, 512)), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    blocks = GGUFBlocks.from_bytes(raw, kind, 512)
    with np.errstate(all="ignore"):
        found = np.asarray(jax.jit(GGUFBlocks.unpack)(blocks))
        some = np.asarray(blocks[np.array([12, 3, -2])])
        part = np.asarray(jax.jit(GGUFBlocks.unpack)(blocks.rows(np.array([12, 3, 11, 0, 3]))))
        finite = blocks.is_finite()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(some, expected[[12, 3, -2]])
    np.testing.assert_array_equal(part, expected[[12, 3, 11, 0, 3]])
    assert finite == np.isfinite(expected).all()
    assert blocks.shape == expected.shape


def test_a_stack_in_several_formats() -> None:
    """As a stack, layer by layer, and by rows: bit-equal to each format alone."""
    rng = np.random.default_rng(0)
    layers, expected = [], []
    for kind in ("Q4_K", "F16", "Q6_K", "Q4_K", "F16"):
        if kind == "F16":
            layers.append(rng.normal(size=(4, 256)).astype(np.float16))
            expected.append(layers[-1].astype(np.float32))
            continue
        raw = rng.integers(0, 60, (4, row_bytes(kind, 256)), dtype=np.uint8)
        layers.append(GGUFBlocks.from_bytes(raw, kind, 256))
        expected.append(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]))
    expected = np.stack(expected)
    places = StackPlaces()
    for layer in layers:
        places.add(layer)
    assert (places.stack, places.place, places.counts) == ([0, 1, 2, 0, 1], [0, 0, 0, 1, 1], [2, 2, 1])
    stacks = tuple(
        jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *[layers[i] for i in of_one])
        for of_one in ([0, 3], [1, 4], [2])
    )
    stack = MixedStack(stacks, jnp.array(places.stack), jnp.array(places.place))
    assert stack.shape == (5, 4, 256)
    assert stack.is_finite()
    np.testing.assert_array_equal(stack[...], expected)
    one = jax.jit(lambda stack, i: layer_of(stack, i)[...])
    riding, layer_in = split_for_scan({"weight": stack, "bias": jnp.arange(5)})
    _, scanned = jax.jit(lambda: jax.lax.scan(lambda c, row: (c, layer_in(row)["weight"][...]), 0, riding))()
    np.testing.assert_array_equal(scanned, expected)
    for i in range(5):
        np.testing.assert_array_equal(one(stack, i), expected[i])
        np.testing.assert_array_equal(layer_of(stack, i)[np.array([3, 1])], expected[i][[3, 1]])
    numbers = (stacks[0].numbers[0].at[1, 2, 0].set(np.inf), *stacks[0].numbers[1:])
    assert not dataclasses.replace(stack, stacks=(dataclasses.replace(stacks[0], numbers=numbers),)).is_finite()


def layered(form: str, depth: int) -> PackedMatrix | jax.Array:
    """Random weights of `depth` layers, 256 x 256, in a format."""
    rng = np.random.default_rng(0)

    def codes(dtype: Any, *shape: int) -> np.ndarray:
        return rng.integers(0, 100, shape).astype(dtype)

    made: dict[str, Callable[[int], PackedMatrix | np.ndarray]] = {
        "NF4": lambda depth: FourBit(
            codes(np.uint8, depth, 128, 256),
            codes(np.uint8, depth, 256, 4),
            codes(np.float32, depth, 16),
            NestedScales(
                codes(np.float32, depth, 4),
                codes(np.float32, depth, 256),
                codes(np.float32, depth),
                np.tile(np.arange(256, dtype=np.int32), (depth, 1)),
            ),
            "bfloat16",
        ),
        "int8": lambda depth: Int8(codes(np.int8, depth, 256, 256), codes(np.float32, depth, 256)),
        "FP8": lambda depth: Scaled.from_codes(
            codes(ml_dtypes.float8_e4m3fn, depth, 256, 256), codes(np.float32, depth, 2, 2), (128, 128)
        ),
        "GGUF": lambda depth: GGUFBlocks(
            (codes(np.uint8, depth, 128, 256),),
            (codes(np.float16, depth, 256, 1), codes(np.float16, depth, 256, 1)),
            codes(np.uint8, depth, 256, 12),
            "Q4_K",
        ),
        "mixed": lambda depth: MixedStack(
            tuple(made[kind](-(-depth // 4)) for kind in ("GGUF", "NF4", "BF16", "F16")),
            np.arange(depth, dtype=np.int32) % 4,
            np.arange(depth, dtype=np.int32) // 4,
        ),
        "F16": lambda depth: codes(np.float16, depth, 256, 256),
        "GPTQ": lambda depth: Affine(
            codes(np.uint8, depth, 128, 256),
            codes(np.uint8, depth, 256, 4),
            codes(np.float16, depth, 256, 4),
            codes(np.int32, depth, 256) % 4,
            4,
        ),
        "AWQ": lambda depth: dataclasses.replace(made["GPTQ"](depth), group=None),
        "BF16": lambda depth: BFloat16(codes(np.uint16, depth, 256, 256)),
    }
    return jax.tree.map(jnp.asarray, made[form](depth))


@pytest.mark.parametrize("form", ["NF4", "int8", "FP8", "GGUF", "GPTQ", "AWQ", "mixed", "BF16"])
@pytest.mark.parametrize("way", ["rows", "jacrev"])
def test_one_layer_at_a_time_is_unpacked(form: str, way: str) -> None:
    """Compiled temporary memory is the same at 4 and at 16 layers: packed weights stay packed."""

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


QWEIGHT = "model.layers.0.mlp.up_proj"


def changed(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    """Another tensor of one module, or in another dtype."""
    return lambda tensors: tensors.update({f"{QWEIGHT}.{part}": change(tensors[f"{QWEIGHT}.{part}"])})


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("gptq", lambda t: t.pop(f"{QWEIGHT}.scales"), "up_proj.scales .*F16.*found none"),
        ("gptq", lambda t: t.pop(f"{QWEIGHT}.qzeros"), "up_proj.qzeros .*found none"),
        ("gptq, reordered", lambda t: t.pop(f"{QWEIGHT}.g_idx"), "up_proj.g_idx .*found none"),
        ("gptq", changed("g_idx", lambda group: group + 1), r"g_idx: expected groups in 0\.\.3; found 1 to 4"),
        ("gptq", changed("g_idx", lambda group: group.float()), "g_idx.*found F32"),
        (
            "gptq",
            changed("qweight", lambda words: words[:-1]),
            r"up_proj.weight: expected shape .192, 128.; found .192, 120.",
        ),
        ("gptq", changed("qweight", lambda words: words[:12].contiguous()), r"qzeros.*found I32|expected shape"),
        ("gptq", changed("qweight", lambda words: words.float()), "qweight: expected words of I32.*found F32"),
        ("gptq", changed("qweight", lambda words: words[0]), r"qweight: expected words of I32.*of shape \("),
        ("gptq", changed("scales", lambda scale: scale * float("nan")), "up_proj.weight: expected finite"),
        ("gptq", changed("scales", lambda scale: scale * 0 + 60000), "up_proj.weight: expected finite"),
        ("gptq", lambda t: t.update({f"{QWEIGHT}.weight": torch.ones(2, 2)}), "up_proj.qweight alone.*found both"),
        ("awq", changed("qweight", lambda words: words[:, :-1].contiguous()), "up_proj.weight: expected shape"),
        ("awq", changed("qweight", lambda words: words[None]), r"qweight: expected words of I32.*of shape \(1"),
        ("awq", changed("scales", lambda scale: scale.int()), "scales.*found I32"),
        ("pack-quantized", changed("weight_shape", lambda shape: shape * 2), "expected words of 4 bits.*weight_shape"),
        ("pack-quantized", changed("weight_shape", lambda shape: -shape), "expected words of 4 bits.*weight_shape"),
        ("pack-quantized", changed("weight_shape", lambda shape: shape + 2**62), "expected words of 4 bits"),
        ("pack-quantized", changed("weight_shape", lambda shape: shape[:1]), "weight_shape.*found I64"),
        ("pack-quantized", changed("weight_packed", lambda words: words.float()), "weight_packed.*found F32"),
        ("pack-quantized, reordered", lambda t: t.pop(f"{QWEIGHT}.weight_zero_point"), "zero_point.*found none"),
        ("pack-quantized, reordered", lambda t: t.pop(f"{QWEIGHT}.weight_g_idx"), "weight_g_idx.*found none"),
    ],
)
def test_damaged_words(
    form: str,
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = damaged(quantise(checkpoint("llama, wide"), tmp_path, *FORMATS[form][:2]), change)
    with pytest.raises(CheckpointError, match=message):
        jaxlin.load(folder)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({**GPTQ, "bits": 3}, "bits.*expected 4 or 8; found 3"),
        ({**GPTQ, "bits": "4"}, "bits.*type int"),
        ({**GPTQ, "group_size": 0}, "group_size.*found 0"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format.*found 'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "is_marlin_format"),
        ({**GPTQ, "dynamic": {"+:.*": {"bits": 8}}}, "dynamic"),
        ({**GPTQ, "dynamic": {"-:.*mlp.gate$": {}, ".*": {"bits": 8}}}, "dynamic"),
        ({**GPTQ, "surprise": 1}, "surprise"),
        ({**AWQ, "bits": 8}, "bits"),
        (packed_config(num_bits=3), "integers of 4 or 8 bits"),
        (packed_config(num_bits=[4]), "integers of 4 or 8 bits"),
        (packed_config(strategy="tensor"), "strategy group or channel"),
        (packed_config(group_size="128"), "group_size"),
        ({**COMPRESSED, "format": "pack-quantized", "config_groups": {}}, "one kind in all groups.*found 0"),
        ({**COMPRESSED, "format": "pack-quantized", "config_groups": {"a": {"weights": 4}}}, "an object 'weights'"),
        ({**AWQ, "version": "gemv"}, "version.*found 'gemv'"),
        ({**AWQ, "backend": "llm-awq"}, "backend"),
        ({**AWQ, "zero_point": False}, "zero_point"),
        ({**AWQ, "modules_to_not_convert": [1]}, "modules_to_not_convert"),
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


def test_what_transformers_writes_of_a_quantisation() -> None:
    """All keys of its configs are known."""
    from transformers import AwqConfig, GPTQConfig

    for written, kind in ((GPTQConfig(4, dataset="c4", desc_act=True), "GPTQ"), (AwqConfig(), "AWQ")):
        said = json.loads(written.to_json_string(use_diff=False))
        found = quantized_format(ConfigReader({"quantization_config": said}, "config.json"))
        assert type(found).__name__ == kind


def test_mlx_by_its_own_key(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    config = json.loads((checkpoint("llama, wide") / "config.json").read_text())
    said = {"group_size": 64, "bits": 4}
    for extra in ({"quantization": said}, {"quantization": said, "quantization_config": said}):
        with pytest.raises(ConfigError, match="that of MLX"):
            jaxlin.memory_plan({**config, **extra}, tokens=2)


@pytest.mark.parametrize("form", ["nf4, nested", "int8", "gptq"])
def test_layers_in_different_formats_stay_packed(
    form: str, checkpoint: Callable[[str], Path], tmp_path: Path, x64: None
) -> None:
    """Some files leave the matrices of a few layers as they were, in another dtype than the rest of the model."""
    write, said, kind = FORMATS[form]
    folder = quantise(checkpoint("llama, wide"), tmp_path, write, said)
    name = "model.layers.1.mlp.up_proj"
    values = load_file(folder / "values" / "model.safetensors")
    plain = unquantise(folder, name)
    model, _ = jaxlin.load(folder, linearize=True, dtype="float64")
    weight = model.layers.mlp.up_proj.weight.get_value()
    assert isinstance(weight, MixedStack)
    assert tuple(map(type, weight.stacks)) == (kind, BFloat16)
    assert [jax.tree.leaves(stack)[0].shape[0] for stack in weight.stacks] == [1, 1]
    values[f"{name}.weight"] = plain.float()
    expected = np.stack([values[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(2)])
    np.testing.assert_array_equal(weight[...], expected)

    save_file(values, folder / "values" / "model.safetensors", metadata={"format": "pt"})
    x = model.embed(tiny.IDS)
    exact = oracle.logits(folder / "values", tiny.IDS, torch.float64)
    np.testing.assert_allclose(model.unembed(jax.jit(lambda m, x: m(x))(model, x)), exact, atol=1e-10)
    lmap = jaxlin.local_map(model, x, remat=form == "int8")
    held = oracle.frozen_rows(folder / "values", tiny.IDS, -1, u := np.random.default_rng(0).normal(size=(2, 128)))
    np.testing.assert_allclose(lmap.T @ u, held.rows, atol=1e-10 * np.abs(held.rows).max())
    assert lmap.residual <= 1e-13
    part = jaxlin.local_map(model, x, source=("resid_post", 0))
    assert part.residual <= 1e-13


def test_biases_of_zeros(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Old files of GPTQ have them where the model has none; others are refused."""
    folder = quantise(checkpoint("llama, wide"), tmp_path, *FORMATS["gptq"][:2])
    jaxlin.load(damaged(folder, lambda tensors: tensors.update({f"{QWEIGHT}.bias": torch.zeros(192)})))
    with pytest.raises(CheckpointError, match=r"found model.layers.0.mlp.up_proj.bias"):
        jaxlin.load(damaged(folder, lambda tensors: tensors.update({f"{QWEIGHT}.bias": torch.eye(192)[0]})))


def test_groups_that_do_not_fill_a_row(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = quantise(checkpoint("llama, wide"), tmp_path, FORMATS["gptq"][0], {**GPTQ, "group_size": 80})
    with pytest.raises(CheckpointError, match=r"qweight: expected rows of whole groups of 80 columns; found \d+"):
        jaxlin.load(folder)


def test_vectors_of_two_dtypes_are_widened(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_file(checkpoint("llama, wide") / "model.safetensors")
    names = [f"model.layers.{layer}.input_layernorm.weight" for layer in range(2)]
    for name, dtype in zip(names, (torch.float16, torch.bfloat16), strict=True):
        tensors[name] = tensors[name].to(dtype)
    shutil.copytree(checkpoint("llama, wide"), tmp_path / "model")
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    model, _ = jaxlin.load(tmp_path / "model")
    found = model.layers.input_layernorm.weight[...]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack([tensors[name].float() for name in names]))


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
