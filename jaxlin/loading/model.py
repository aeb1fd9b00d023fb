"""`load`: a checkpoint becomes a model and a tokenizer."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxlin.checkpoint import open_checkpoint
from jaxlin.checkpoint.config import ConfigReader, without_keys
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.checkpoint.hub import Name, Revision, commit_of
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import checksum
from jaxlin.common.printable import quoted
from jaxlin.common.provenance import Checkpoint, note_checkpoint
from jaxlin.loading.joined import joined
from jaxlin.loading.parameters import read_parameters
from jaxlin.loading.registry import port_for
from jaxlin.loading.stored import TensorSource
from jaxlin.loading.translated_gguf import TranslatedGGUF
from jaxlin.loading.unembedding import with_unembedding
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule, checked_rule
from jaxlin.nn.modules import without_values
from jaxlin.nn.precision import Precision, checked_precision
from jaxlin.nn.sharding import checked_mesh
from jaxlin.quantized import open_quantized
from jaxlin.tokenizer import Tokenizer, read_tokenizer

HASHED_BYTES = 2**20
"""The beginning of a file that is hashed: the names and shapes of its tensors, and some values."""

SMALL = Path(__file__).parent / "small"
"""The folder of the trained model that ships in the wheel."""


@checked
def load(
    name: Name | None = None,
    *,
    linearize: bool = False,
    rule: Rule | str = "gate",
    dtype: Any = None,
    precision: Precision | str = "highest",
    revision: Revision = None,
    mesh: Mesh | int | None = None,
    ignore_config_keys: Sequence[str] = (),
) -> tuple[Decoder, Tokenizer | Any]:
    """Load a model and its tokenizer. If the checkpoint has no tokenizer, it is None, and a message is logged.

    Args:
        name: a hub id (``"meta-llama/Llama-3.2-3B"``), a directory, or a ``.gguf`` file; by default the small model
            that ships with jaxlin.
        linearize: freeze every nonlinear factor, so that plain `jax.jacfwd` gives the exact local linear map. The
            factors are then constants to every derivative: the gradient of a loss is that of the frozen model, which is
            not one to train by, and a quantity computed from the map, such as a singular value of the result of
            `jax.jacfwd`, has a gradient of zero: all second derivatives are. For those gradients take ``model.plain``,
            which shares the weights, as ``model.linearized`` does of a model loaded without it. `jaxlin.local_map`
            works, and is differentiable, either way.
        rule: the freeze rule of gated MLPs, ``"gate"``, ``"up"`` or ``"half"``: see `jaxlin.nn.freeze_rules`.
        dtype: the dtype of the computation; None for the stored dtype, at least float32. The weights stay as stored.
        precision: how float32 matrices are multiplied, ``"highest"``, ``"high"``, ``"fast"`` or by a named algorithm:
            see `jaxlin.nn.precision`.
        revision: a branch, tag or commit of a hub id.
        mesh: how many devices to use, or a mesh of them with an axis ``"model"``, over which the weights are split,
            and perhaps ``"rows"``, over which the rows of a map are spread: see `jaxlin.nn.sharding`.
        ignore_config_keys: keys of config.json, or of GGUF metadata, that are treated as absent, for a file that jaxlin
            refuses because of a key that you know to be harmless; ``"text_config.key"`` is a key within an object.
            ``model.config.ignored_config_keys`` lists them.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or its tensors are not those of the model.
        ConfigError: no port understands a key or value of the config.json, or of the GGUF metadata.
        TokenizerError: the tokenizer cannot be read.
        JaxlinError: there is no such rule, dtype or precision; the dtype is float64 without x64; the mesh does not
            divide the heads; or there are fewer devices.
    """
    rule = checked_rule(rule)
    precision_mode = checked_precision(precision)
    compute_dtype = None if dtype is None else checked_dtype(dtype)
    checkpoint = open_checkpoint(SMALL if name is None else name, revision)
    checkpoint.config = without_keys(checkpoint.config, ignore_config_keys, checkpoint.source)
    gguf = None
    if isinstance(checkpoint, CheckpointFolder):
        reader = ConfigReader(checkpoint.config, checkpoint.source)
        tensors: TensorSource = open_quantized(checkpoint, reader)
        tokenizer = read_tokenizer(checkpoint.tokenizer_files, checkpoint.source)
    else:
        tensors = gguf = TranslatedGGUF(checkpoint)
        reader = ConfigReader(gguf.config, checkpoint.source)
        tokenizer = Tokenizer.from_gguf(checkpoint.config, checkpoint.source)
        checkpoint.forget("tokenizer.")
    port = port_for(reader.peek("model_type")).as_named(tuple(tensors.names()), checkpoint.source)
    port = port if gguf is None else gguf.adapted(port)
    config = dataclasses.replace(port.translate(reader), ignored_config_keys=tuple(ignore_config_keys))
    reader.finish()
    devices = None if mesh is None else checked_mesh(mesh, config.split_sizes)
    tensors = joined(tensors, port, config)
    config = with_unembedding(config, tensors, port, reader.peek("architectures"), checkpoint.source)

    def build(rngs: nnx.Rngs) -> Decoder:
        modes = {"linearize": linearize, "rule": rule, "precision": precision_mode}
        return port.model(config, rngs=rngs, dtype=compute_dtype or "float32", **modes)

    model = read_parameters(without_values(build), tensors, port, checkpoint.source, devices)
    if compute_dtype is None:  # which a weight of the file tells
        stored = jnp.promote_types(model.embed_tokens.weight.get_value().dtype, jnp.float32)
        model = model.copy_with(dtype=checked_dtype(stored))
    note_checkpoint(
        model, _provenance("the small model of jaxlin" if name is None else os.fspath(name), checkpoint, tokenizer)
    )
    return model, tokenizer


def _provenance(name: str, checkpoint: CheckpointFolder | GGUFFile, tokenizer: Any) -> Checkpoint:
    """What a model was loaded from, with a hash of its configuration and of the beginning of each file of weights."""
    path = Path(checkpoint.source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    contents = [path / "config.json"] * path.is_dir() + files
    return Checkpoint(name, commit_of(path), checksum(*map(_beginning, contents)), tokenizer)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HASHED_BYTES) + str(path.stat().st_size).encode()


def checked_dtype(dtype: Any) -> str:
    """The name of `dtype`, if models can compute in it.

    Raises:
        JaxlinError: they cannot, or it is float64 without x64.
    """
    try:
        name = jnp.dtype(dtype).name
    except (TypeError, ValueError):
        name = quoted(dtype)
    if name not in ("float64", "float32", "bfloat16", "float16"):
        raise JaxlinError(f"dtype: expected float64, float32, bfloat16 or float16; found {name}.")
    if name == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise JaxlinError(
            "dtype: float64 needs JAX's 64-bit mode, which is off. Set JAX_ENABLE_X64=1, or call "
            'jax.config.update("jax_enable_x64", True) before anything else.'
        )
    return name
