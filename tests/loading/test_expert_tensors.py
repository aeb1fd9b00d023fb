"""Experts in each of the layouts that checkpoints have, read one matrix at a time into one stack."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import expert_files
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from expert_files import (
    EITHER,
    EXPERTS,
    FEATURES,
    INTERLEAVED,
    LAYERS,
    LAYOUTS,
    TRANSPOSED,
    WIDTH,
    fused,
    interleaved,
    layers_of,
    read,
    single,
    transposed,
    values,
    write,
    write_packed,
)
from quantised_files import FORMATS
from safetensors.numpy import load_file, save_file

from jaxlin.checkpoint import CheckpointFolder
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.porting import either, fused_experts
from jaxlin.quantized import MXFP4, MixedStack, Scaled, open_quantized


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: Any, tmp_path: Path) -> None:
    lay_out, names = LAYOUTS[layout]
    stacks = values(biases=layout == "interleaved")
    checkpoint = write(tmp_path, list(map(lay_out, layers_of(stacks))), dtype)
    experts = read(checkpoint, names, biases=layout == "interleaved")
    for name, expected in stacks.items():
        module, kind = name.split(".")
        parameter = getattr(getattr(experts, module), kind).get_value()
        assert parameter.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(parameter[...], np.float32), expected.astype(dtype).astype(np.float32))
        if kind == "weight":
            matrix = jax.jit(lambda stack, i, j: stack[i, j])(parameter, 1, 2)
            np.testing.assert_array_equal(matrix, np.asarray(parameter[...], np.float32)[1, 2])


@pytest.mark.parametrize("form", FORMATS)
def test_packed(form: str, tmp_path: Path) -> None:
    """Each expert stays packed, and is unpacked alone."""
    checkpoint, exact = write_packed(tmp_path, list(map(single, layers_of(values()))), form)
    experts = read(checkpoint, EITHER)
    for name, module in (("w1", experts.gate_proj), ("w2", experts.down_proj)):
        stack = module.weight.get_value()
        assert isinstance(stack, FORMATS[form][2])
        assert stack.shape[:2] == (LAYERS, EXPERTS)
        indexed = jax.jit(lambda stack, i, j: stack[i, j])
        for i, j in np.ndindex(LAYERS, EXPERTS):
            expected = exact[f"model.layers.{i}.moe.experts.{j}.{name}.weight"]
            np.testing.assert_array_equal(np.asarray(indexed(stack, i, j), np.float32), expected)
            np.testing.assert_array_equal(np.asarray(stack[...][i, j], np.float32), expected)
        memory: Any = indexed.lower(stack, 0, 0).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4 * stack.shape[2] * stack.shape[3] * 8, memory


@pytest.mark.parametrize("block", [(32, 32), (48, 128), None])
def test_fused_fp8(block: tuple[int, int] | None, tmp_path: Path) -> None:
    """Experts in one tensor, with blocks of their own, or a scale for each projection of each."""
    write(tmp_path, [{}, {}])
    tensors, exact = safetensors.torch.load_file(tmp_path / "model.safetensors"), {}
    for i, layer in enumerate(map(fused, layers_of(values()))):
        for name, stack in layer.items():
            out, width = stack.shape[1:]
            high, wide = block or (out // (2 if "gate_up" in name else 1), width)
            high, wide = min(high, out), min(wide, width)
            scale = np.random.default_rng(i).uniform(0.01, 0.02, (EXPERTS, -(-out // high), -(-width // wide)))
            spread = np.repeat(np.repeat(scale.astype(np.float32), high, 1)[:, :out], wide, 2)[:, :, :width]
            codes = torch.from_numpy(stack / spread).to(torch.float8_e4m3fn)
            exact[i, name] = codes.float().numpy() * spread
            tensors[f"model.layers.{i}.{name}"] = codes
            tensors[f"model.layers.{i}.{name}_scale_inv"] = torch.from_numpy(scale.astype(np.float32))
            tensors[f"model.layers.{i}.{name}_activation_scale"] = torch.ones(EXPERTS)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    config = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": block and list(block)}
    checkpoint = open_quantized(CheckpointFolder(tmp_path), ConfigReader({"quantization_config": config}, "here"))
    experts = read(checkpoint, EITHER)
    for i, j in np.ndindex(LAYERS, EXPERTS):
        gate_up = exact[i, "experts.gate_up_proj"][j]
        for module, expected in (
            (experts.gate_proj, gate_up[:WIDTH]),
            (experts.up_proj, gate_up[WIDTH:]),
            (experts.down_proj, exact[i, "experts.down_proj"][j]),
        ):
            stack = module.weight.get_value()
            assert isinstance(stack, Scaled)
            np.testing.assert_array_equal(stack[i, j], expected)
    # Blocks that begin where up does keep one scale each.
    assert experts.up_proj.weight.get_value().scale.shape[2] == {(32, 32): 2, (48, 128): WIDTH, None: 1}[block]


def drawn_mxfp4(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales of values of order 1, and some that are tiny or huge."""
    draw = np.random.default_rng(len(shape))
    blocks = draw.integers(0, 256, (*shape[:-1], shape[-1] // 32, 16), np.uint8)
    scales = draw.integers(120, 130, blocks.shape[:-1], np.uint8)
    scales[..., 0, 0], scales[..., 1, 0] = 2, 252
    return blocks, scales


def test_mxfp4(tmp_path: Path) -> None:
    """As gpt-oss has it, interleaved and with biases; the values are transformers'."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    biases = {name: stack for name, stack in interleaved(layers_of(values(biases=True))[0]).items() if "bias" in name}
    packed: dict[str, np.ndarray] = {}
    for name, rows, width in (("gate_up_proj", 2 * WIDTH, FEATURES), ("down_proj", FEATURES, WIDTH)):
        blocks, scales = drawn_mxfp4(EXPERTS, rows, width)
        packed |= {f"experts.{name}_blocks": blocks, f"experts.{name}_scales": scales}
    write(tmp_path, [{}, {}])
    layers = {f"model.layers.{i}.{name}": a for i in range(2) for name, a in {**biases, **packed}.items()}
    save_file({**load_file(tmp_path / "model.safetensors"), **layers}, tmp_path / "model.safetensors")
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    checkpoint = open_quantized(CheckpointFolder(tmp_path), ConfigReader({"quantization_config": config}, "here"))
    names = either(fused_experts("experts", WIDTH, suffix="_blocks", interleaved=True, biases=True), INTERLEAVED)
    experts = read(checkpoint, names, biases=True)
    for name, stack in (("gate_up_proj", None), ("down_proj", experts.down_proj)):
        blocks, scales = (torch.from_numpy(packed[f"experts.{name}_{part}"]) for part in ("blocks", "scales"))
        expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2).numpy()
        parts = [(stack, expected)] if stack else []
        parts += [] if stack else [(experts.gate_proj, expected[:, ::2]), (experts.up_proj, expected[:, 1::2])]
        for module, part in parts:
            assert isinstance(module.weight.get_value(), MXFP4)
            np.testing.assert_array_equal(module.weight.get_value()[...][1], part)
            np.testing.assert_array_equal(module.weight.get_value()[1, 2], part[2])
            np.testing.assert_array_equal(module.weight.get_value().matrix(1, 2)[np.array([3, 0])], part[2][[3, 0]])
    np.testing.assert_array_equal(experts.up_proj.bias.get_value()[1], biases["experts.gate_up_proj_bias"][:, 1::2])
    for name, wrong, message in (
        ("scales", packed["experts.down_proj_scales"] | 255, "experts.down_proj_blocks: expected finite values"),
        ("scales", packed["experts.down_proj_scales"][..., :1], r"down_proj_scales of U8 and shape \(3, 128, 2\)"),
        ("blocks", packed["experts.down_proj_blocks"][..., :8], r"bytes of U8 and shape \(experts, out, in / 32, 16\)"),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        damaged = {f"model.layers.{i}.experts.down_proj_{name}": np.ascontiguousarray(wrong) for i in range(2)}
        save_file({**load_file(tmp_path / "model.safetensors"), **damaged}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
        folder = CheckpointFolder(tmp_path / name)
        with pytest.raises(CheckpointError, match=message):
            read(open_quantized(folder, ConfigReader({"quantization_config": config}, "here")), names, biases=True)


@pytest.mark.parametrize("form", ["gptq", "fp8"])
def test_layers_in_unlike_formats(form: str, tmp_path: Path) -> None:
    """A layer whose experts are not quantised stays as it is; within a layer all are alike."""
    first, second = map(single, layers_of(values()))
    packed, exact = write_packed(tmp_path, [first, {}], form)
    path = tmp_path / "model.safetensors"
    plain = {f"model.layers.1.{name}": torch.from_numpy(tensor) for name, tensor in second.items()}
    tensors = {**safetensors.torch.load_file(path), **plain}
    safetensors.torch.save_file(tensors, path)
    packed = open_quantized(CheckpointFolder(tmp_path), ConfigReader({"quantization_config": FORMATS[form][1]}, "here"))
    stack = read(packed, EITHER).gate_proj.weight.get_value()
    assert isinstance(stack, MixedStack)
    indexed = jax.jit(lambda stack, i, j: stack[i, j])
    for j in range(EXPERTS):
        name = f"moe.experts.{j}.w1.weight"
        np.testing.assert_array_equal(indexed(stack, 0, j), exact[f"model.layers.0.{name}"].astype(np.float32))
        np.testing.assert_array_equal(indexed(stack, 1, j), second[name])
    every = jax.jit(jax.vmap(lambda j: stack[0, j]))(np.arange(EXPERTS))
    np.testing.assert_array_equal(every[2], indexed(stack, 0, 2))
    tensors = {key: tensor for key, tensor in tensors.items() if "0.moe.experts.1.w1" not in key}
    tensors["model.layers.0.moe.experts.1.w1.weight"] = torch.from_numpy(first["moe.experts.1.w1.weight"])
    safetensors.torch.save_file(tensors, path)
    packed = open_quantized(CheckpointFolder(tmp_path), ConfigReader({"quantization_config": FORMATS[form][1]}, "here"))
    with pytest.raises(CheckpointError, match=r"0.moe.experts.1.w1.weight: expected the format of the first expert"):
        read(packed, EITHER)


def test_peak_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes the weights and little more than one expert, in each layout, never a layer once again."""
    program = """
import sys, re; sys.path.insert(0, "tests")
import jax, expert_files as t
from pathlib import Path
t.EXPERTS, t.WIDTH, t.FEATURES = 32, 256, 1024
names = t.fused_experts("experts", t.WIDTH, transposed=sys.argv[1] == "transposed")
names = names if sys.argv[1] == "transposed" else t.either(t.SINGLE, names)
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
jax.numpy.ones(3).block_until_ready()
before = peak()
experts = t.read(t.CheckpointFolder(Path(sys.argv[2])), names)
print(peak() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(experts)))
"""
    monkeypatch.setattr(expert_files, "FEATURES", 1024)
    ones = {"gate_proj": (256, 1024), "up_proj": (256, 1024), "down_proj": (1024, 256)}
    layer = {f"{name}.weight": np.ones((32, *shape), np.float32) for name, shape in ones.items()}
    for layout in ("single", "fused", "transposed"):
        write(tmp_path / layout, [LAYOUTS[layout][0](layer)] * 2)
        command = [sys.executable, "-c", program, layout, str(tmp_path / layout)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr[-2000:]
        taken, weights = map(int, done.stdout.split())
        assert 0.9 * weights < taken < weights + 0.25 * weights / 2, (layout, taken, weights)


class TestRefusals:
    """What no layout of a port is."""

    def test_a_mixture(self, tmp_path: Path) -> None:
        """Layers in unlike layouts, or the parts of one layer."""
        first, second = layers_of(values())
        both = fused(first), single(first)
        part = {"experts.gate_up_proj": both[0]["experts.gate_up_proj"]}
        part |= {name: tensor for name, tensor in both[1].items() if "w2" in name}
        for i, layers in enumerate(([both[0], single(second)], [{**both[0], **both[1]}] * 2, [part, part])):
            with pytest.raises(CheckpointError, match=r"all layers in one layout; found some as .* and some as "):
                read(write(tmp_path / str(i), layers), EITHER)

    def test_shapes(self, tmp_path: Path) -> None:
        """Even where 2 f = d, so that one of the tensors does not show its orientation, the other one does."""
        layers = layers_of(values())
        for i, (lay_out, names) in enumerate([(transposed, EITHER), (fused, TRANSPOSED)]):
            with pytest.raises(CheckpointError, match=r"experts.down_proj: expected shape \(3, .*; found \(3, "):
                read(write(tmp_path / str(i), list(map(lay_out, layers))), names)

    def test_an_expert_is_missing(self, tmp_path: Path) -> None:
        layers = list(map(single, layers_of(values())))
        del layers[1]["moe.experts.2.w3.weight"]
        with pytest.raises(
            CheckpointError, match=r"tensor model.layers.1.moe.experts.2.w3.weight of shape \(64, 128\)"
        ):
            read(write(tmp_path / "single", layers), EITHER)
        with pytest.raises(CheckpointError, match=r"tensor model.layers.0.moe.experts.3.w2.weight of shape"):
            read(write(tmp_path / "more", list(map(single, layers_of(values())))), EITHER, experts=10**12)
        fewer = [{name: tensor[:2] for name, tensor in layer.items()} for layer in map(fused, layers_of(values()))]
        with pytest.raises(CheckpointError, match=r"expected shape \(3, 128, 64\); found \(2, 128, 64\)"):
            read(write(tmp_path / "fused", fewer), EITHER)

    def test_an_expert_too_many(self, tmp_path: Path) -> None:
        layers = list(map(single, layers_of(values())))
        layers[0] |= {name.replace("experts.2", "experts.3"): t for name, t in layers[0].items()}
        with pytest.raises(CheckpointError, match=r"found model.layers.0.moe.experts.3.w1.weight"):
            read(write(tmp_path, layers), EITHER)

    def test_unlike_widths(self, tmp_path: Path) -> None:
        layers = list(map(single, layers_of(values())))
        layers[1]["moe.experts.1.w1.weight"] = layers[1]["moe.experts.1.w1.weight"][:2]
        with pytest.raises(CheckpointError, match=r"experts.1.w1.weight: expected shape \(64, 128\); found \(2, 128\)"):
            read(write(tmp_path, layers), EITHER)


def test_each_device_has_its_experts(tmp_path: Path) -> None:
    """Over four devices two have each half of the experts; what is read is read once, and only for its devices."""
    program = """
import sys; sys.path.insert(0, "tests")
import jax; jax.config.update("jax_num_cpu_devices", 4)
import expert_files as t, numpy as np
from pathlib import Path
from jaxlin.checkpoint.safetensors import SafetensorsFile
t.EXPERTS = 4
mesh = jax.make_mesh((2, 2), ("rows", "model"))
stacks, folder = t.values(), Path(sys.argv[1])
reads, read_slice = [], SafetensorsFile.read_slice
for layout in ("single", "fused"):
    checkpoint = t.write(folder / layout, [t.LAYOUTS[layout][0](layer) for layer in t.layers_of(stacks)])
    SafetensorsFile.read_slice = lambda self, name, index: reads.append((name, index)) or read_slice(self, name, index)
    experts = t.read(checkpoint, t.EITHER, mesh=mesh)
    SafetensorsFile.read_slice = read_slice
    for name in ("up_proj", "down_proj"):
        stack = getattr(experts, name).weight.get_value()
        assert stack.sharding.spec == jax.sharding.PartitionSpec(None, "model"), stack.sharding
        for shard in stack.addressable_shards:
            assert shard.data.shape[:2] == (2, 2), shard
            np.testing.assert_array_equal(shard.data, stacks[f"{name}.weight"][shard.index])
    name = {"single": "moe.experts.1.w3.weight", "fused": "experts.gate_up_proj"}[layout]
    spans = [index for read, index in reads if read == f"model.layers.0.{name}" and index[-1] != slice(0, 0)]
    spans = [index for index in spans if index[-1].stop > index[-1].start]
    assert len(spans) == {"single": 1, "fused": 8}[layout], spans  # of each expert gate once, and up once

# A process whose devices have the first half of the experts reads no other.
from jaxlin.nn.sharding import ShardedArray
init, reads = ShardedArray.__init__, []
def with_half(self, *arguments):
    init(self, *arguments)
    self._devices = {device: index for device, index in self._devices.items() if device.id in (0, 2)}
ShardedArray.__init__ = with_half
ShardedArray.array = lambda self, layers=None: next(iter(self._parts.values()))
SafetensorsFile.read_slice = lambda self, name, index: reads.append((name, index)) or read_slice(self, name, index)
for layout in ("single", "fused"):
    checkpoint = t.CheckpointFolder(folder / layout)
    stack = t.read(checkpoint, t.EITHER, mesh=mesh).up_proj.weight.get_value()
    np.testing.assert_array_equal(stack, stacks["up_proj.weight"][:, :2])
assert any(".experts.1." in name for name, _ in reads)
assert not any(".experts.2." in name for name, _ in reads)
assert all(index[0].stop <= 2 for name, index in reads if "gate_up" in name), reads
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
