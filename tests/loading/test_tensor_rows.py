"""Tensors whose rows are in another order than the parameter's, or that are transposed, or have an axis more."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from quantised_files import FORMATS
from safetensors.torch import save_file
from torch import from_numpy

from jaxlin.checkpoint import CheckpointFolder
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.common.errors import CheckpointError
from jaxlin.loading.parameters import read_parameters
from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.modules import RMSNorm, normal, without_values
from jaxlin.porting import Port, TensorRows, part_rows, stacked_rows
from jaxlin.quantized import open_quantized

HEADS, HEAD_DIM, D = 4, 32, 64
SHAPES = {"q": (128, D), "k": (128, D), "conv": (128, 4), "gate": (1, D), "bias": (128,)}


class Part(nnx.Module):
    """A parameter of any shape."""

    def __init__(self, *shape: int, rngs: nnx.Rngs) -> None:
        self.weight = normal(rngs, *shape)


class Block(nnx.Module):
    """The parameters of `SHAPES`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
        for name, shape in SHAPES.items():
            setattr(self, name, Part(*shape, rngs=rngs))


class OddDecoder(Decoder):
    """A decoder that is only read."""

    Block = Block

    def final_norm(self, config: Config) -> RMSNorm:
        """RMSNorm."""
        return RMSNorm(config.hidden_size, 1e-6)


def read(tensors: Mapping[str, np.ndarray], names: Mapping[str, Any], folder: Path, form: str | None = None) -> Any:
    """The parameters of the two layers of a checkpoint that has these tensors in both, and of one in the second."""
    stored = {"embed_tokens.weight": np.ones((5, D), np.float32), "norm.weight": np.ones(D, np.float32)}
    torch_tensors = {name: from_numpy(value) for name, value in stored.items()}
    for layer in range(2):
        for name, value in tensors.items():
            parts = {f"layers.{layer}.{name}": from_numpy(np.ascontiguousarray(value * (layer + 1)))}
            if form and name.startswith("packed"):
                parts, _ = FORMATS[form][0](f"layers.{layer}.{name}", next(iter(parts.values())))
            torch_tensors |= parts
    save_file(
        {f"model.{name}": value.contiguous() for name, value in torch_tensors.items()}, folder / "model.safetensors"
    )
    config = {"quantization_config": FORMATS[form][1]} if form else {}
    (folder / "config.json").write_text(json.dumps(config))
    sizes = {"vocab_size": 5, "hidden_size": D, "intermediate_size": 4, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD_DIM}
    numbers: dict[str, Any] = {**sizes, "norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True}
    decoder_config = Config(**numbers, max_position_embeddings=None, ropes=(), windows=(None, None))
    abstract: Any = without_values(lambda rngs: OddDecoder(decoder_config, rngs=rngs))
    checkpoint = open_quantized(CheckpointFolder(folder), ConfigReader(config, "here"))
    port = Port(OddDecoder, lambda json: None, names=lambda config: names)
    return read_parameters(abstract, checkpoint, port, "here").layers


def drawn(*shape: int) -> np.ndarray:
    """Random values, unlike in all places."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


PLAIN = {"conv.weight": drawn(128, 4), "gate.weight": drawn(1, D), "bias.weight": drawn(128)}
FUSED = drawn(HEADS, 2, HEAD_DIM, D)
NAMES = stacked_rows("packed.weight", heads=HEADS, module="q", q=HEAD_DIM, k=HEAD_DIM)
NAMES = {"q.weight": NAMES["q.q.weight"], "k.weight": NAMES["q.k.weight"]}


def assert_layers(parameter: Any, expected: np.ndarray) -> None:
    """The parameter is this one in the first layer, and twice it in the second."""
    values = np.asarray(parameter.weight.get_value()[...], np.float32)
    np.testing.assert_array_equal(values, np.stack([expected, 2 * expected]).astype(values.dtype))


def test_rows_of_each_head(tmp_path: Path) -> None:
    """As of GPT-NeoX's fused projection, in which queries, keys and values of a head follow each other."""
    layers = read({**PLAIN, "packed.weight": FUSED.reshape(-1, D)}, NAMES, tmp_path)
    assert_layers(layers.q, FUSED[:, 0].reshape(-1, D))
    assert_layers(layers.k, FUSED[:, 1].reshape(-1, D))


def test_any_order_of_rows(tmp_path: Path) -> None:
    """As of a rotary embedding that pairs neighbours; of a vector too."""
    halves = np.arange(128).reshape(HEADS, -1, 2).swapaxes(1, 2).ravel()
    names = {"k.weight": TensorRows("k.weight", halves), "bias.weight": TensorRows("bias.weight", halves[::-1])}
    tensors = {**PLAIN, "q.weight": drawn(128, D), "k.weight": drawn(128, D) + 1}
    layers = read(tensors, names, tmp_path)
    assert_layers(layers.q, tensors["q.weight"])
    assert_layers(layers.k, tensors["k.weight"][halves])
    assert_layers(layers.bias, PLAIN["bias.weight"][halves[::-1]])


def test_rows_joined_from_several_parts(tmp_path: Path) -> None:
    """As of Qwen 3-Next, whose projection has the parts of each head, and whose convolution those of all heads."""
    first, second = part_rows(HEADS, 8, 24)
    layers = read(
        {**PLAIN, "q.weight": drawn(128, D), "k.weight": FUSED[:, 0].reshape(-1, D)},
        {"k.weight": TensorRows("k.weight", np.concatenate([second, first]))},
        tmp_path,
    )
    heads = FUSED[:, 0]
    assert_layers(layers.k, np.concatenate([heads[:, 8:].reshape(-1, D), heads[:, :8].reshape(-1, D)]))


def test_transposed(tmp_path: Path) -> None:
    """As of GPT-2, whose weights are ``[in, out]``, fused or not."""
    stacked = stacked_rows("c_attn.weight", module="attn", transposed=True, q=128, k=128)
    names = {path.removeprefix("attn."): rows for path, rows in stacked.items()}
    tensors = {**PLAIN, "c_attn.weight": drawn(D, 256)}
    layers = read(tensors, names, tmp_path)
    assert_layers(layers.q, tensors["c_attn.weight"].T[:128])
    assert_layers(layers.k, tensors["c_attn.weight"].T[128:])
    wrong = {**tensors, "c_attn.weight": drawn(256, D)}
    with pytest.raises(CheckpointError, match=r"c_attn.weight: expected shape \(64, 256\); found \(256, 64\)"):
        read(wrong, names, tmp_path)


def test_axes_of_one_element(tmp_path: Path) -> None:
    """As of a depthwise convolution, and of a gate that GGUF files store as a vector; of no vector."""
    tensors = {**PLAIN, "q.weight": drawn(128, D), "k.weight": drawn(128, D)}
    odd = {**tensors, "conv.weight": tensors["conv.weight"][:, None], "gate.weight": tensors["gate.weight"][0]}
    layers = read(odd, {}, tmp_path)
    for name in ("conv", "gate"):
        assert_layers(getattr(layers, name), tensors[f"{name}.weight"])
    for name, wrong in (("conv", (4, 1, 128)), ("gate", (D, 1)), ("bias", (1, 128))):
        with pytest.raises(CheckpointError, match=rf"{name}.weight: expected shape"):
            read({**odd, f"{name}.weight": drawn(*wrong)}, {}, tmp_path)


@pytest.mark.parametrize("form", ["nf4, nested", "int8", "fp8", "gptq, reordered", "awq", "pack-quantized"])
def test_packed_rows(form: str, tmp_path: Path) -> None:
    """Rows of packed weights are gathered while they are packed, and have the values that they have in place."""
    whole = {f"layers.{i}.packed.weight": FUSED.reshape(-1, D) * (i + 1) for i in range(2)}
    layers = read({**PLAIN, "packed.weight": FUSED.reshape(-1, D)}, NAMES, tmp_path, form)
    for i, (name, value) in enumerate(whole.items()):
        _, expected = FORMATS[form][0](name, from_numpy(value))
        for part, module in enumerate((layers.q, layers.k)):
            packed = module.weight.get_value()
            assert isinstance(packed, FORMATS[form][2])
            rows = expected.numpy().reshape(HEADS, 2, HEAD_DIM, D)[:, part].reshape(-1, D)
            np.testing.assert_array_equal(np.asarray(packed[...][i], np.float32), rows)


def test_packed_weights_are_never_transposed(tmp_path: Path) -> None:
    """Formats pack ``[out, in]``, whatever the module had."""
    names = {path: TensorRows("packed.weight", rows.rows, 256, transposed=True) for path, rows in NAMES.items()}
    layers = read({**PLAIN, "packed.weight": FUSED.reshape(-1, D)}, names, tmp_path, "int8")
    _, expected = FORMATS["int8"][0]("packed.weight", from_numpy(FUSED.reshape(-1, D)))
    rows = expected.numpy().reshape(HEADS, 2, HEAD_DIM, D)[:, 1].reshape(-1, D)
    np.testing.assert_array_equal(layers.k.weight.get_value()[...][0], rows)


def test_sizes_beyond_memory(tmp_path: Path) -> None:
    """Rows are listed only once the tensor has as many: to list those of these heads would take terabytes."""
    names = stacked_rows("packed.weight", heads=2**40, module="q", q=HEAD_DIM, k=HEAD_DIM)
    names = {"q.weight": names["q.q.weight"], "k.weight": names["q.k.weight"]}
    with pytest.raises(CheckpointError, match=r"expected shape \(70368744177664, 64\); found \(256, 64\)"):
        read({**PLAIN, "packed.weight": FUSED.reshape(-1, D)}, names, tmp_path)
