"""`load`: a checkpoint, the port of its `model_type` and its tokenizer become a model."""

import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlin.checkpoint import Checkpoint, open_checkpoint
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.decoder import Decoder
from jaxlin.errors import CheckpointError, JaxlinError, TokenizerError
from jaxlin.gguf import GGUFModel
from jaxlin.hold import RULES, Rule
from jaxlin.port import Port, Rows
from jaxlin.registry import port as port_of
from jaxlin.tokenizer import Tokenizer

SMALL = Path(__file__).parent / "small"
"""The trained model that ships in the wheel."""

STORED = ("F64", "F32", "F16", "BF16")
"""The dtypes of weights that are computed with as they are stored."""


@runtime_checkable
class Tensors(Protocol):
    """A checkpoint under Hugging Face's names, whatever its format."""

    def names(self) -> Iterable[str]:
        """The tensors there are."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The values of one."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of one."""
        ...


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    linearize: bool = False,
    rule: Rule | str = "gate",
    dtype: Any = None,
    revision: str | None = None,
) -> tuple[Decoder, Tokenizer]:
    """Load a model and its tokenizer.

    Args:
        name: a hub id (``"meta-llama/Llama-3.2-3B"``), a directory, or a ``.gguf`` file; the small model that ships
            with jaxlin unless given.
        linearize: hold every nonlinear factor, so that plain `jax.jacfwd` gives the exact local linear map.
        rule: the freeze rule of gated MLPs, ``"gate"``, ``"up"`` or ``"half"``: see `jaxlin.hold.Rule`.
        dtype: what is computed in; the stored dtype, at least float32, unless given. The weights stay as stored.
        revision: a branch, tag or commit of a hub id.

    Raises:
        CheckpointError: a checkpoint that cannot be had, is damaged, or whose tensors are not the model's.
        ConfigError: a config.json, or GGUF metadata, with a key or value that no port understands.
        TokenizerError: a tokenizer that cannot be read or does not fit the vocabulary.
        JaxlinError: no such rule or dtype, or float64 without x64.
    """
    if rule not in RULES:
        raise JaxlinError(f"Rule: expected one of {', '.join(RULES)}; found {rule!r}.")
    computed = None if dtype is None else _checked_dtype(dtype)
    checkpoint = open_checkpoint(SMALL if name is None else name, revision)
    if checkpoint.format == "gguf":
        gguf = GGUFModel(checkpoint)
        tensors, json = gguf, gguf.config
        tokenizer = Tokenizer.from_gguf(checkpoint.config, checkpoint.source)
    else:
        tensors, json = checkpoint, checkpoint.config
        _refuse_other_dtypes(checkpoint)
        tokenizer = Tokenizer.from_files(*_tokenizer_files(checkpoint))
    port = port_of(json.get("model_type"))
    reader = ConfigReader(json, checkpoint.source)
    config = port.translate(reader)
    reader.finish()
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"{checkpoint.source}: expected a tokenizer of at most {config.vocab_size} ids, the model's vocabulary; "
            f"found {tokenizer.vocab_size}. Use the tokenizer that belongs to these weights."
        )

    def build(dtype: str) -> Decoder:
        return port.model(config, rngs=nnx.Rngs(0), linearize=linearize, rule=rule, dtype=dtype)

    # The first pass only asks for the parameters; the dtype is known once one of them is read.
    model = _filled(jax.eval_shape(lambda: build("float32")), tensors, port, checkpoint.source)
    stored = jnp.promote_types(model.embed_tokens.weight[...].dtype, jnp.float32)
    structure = jax.tree.structure(jax.eval_shape(lambda: build(computed or _checked_dtype(stored))))
    return jax.tree.unflatten(structure, jax.tree.leaves(model)), tokenizer


def _checked_dtype(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in ("float64", "float32", "bfloat16", "float16"):
        raise JaxlinError(f"dtype: expected float64, float32, bfloat16 or float16; found {name}.")
    if name == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise JaxlinError(
            "dtype: float64 needs JAX's 64-bit mode, which is off. Set JAX_ENABLE_X64=1, or call "
            'jax.config.update("jax_enable_x64", True) before anything else.'
        )
    return name


def _refuse_other_dtypes(checkpoint: Checkpoint) -> None:
    for name in sorted(checkpoint.names()):
        if checkpoint.dtype(name) not in STORED:
            raise CheckpointError(
                f"{checkpoint.source}, tensor {name}: expected one of {', '.join(STORED)}; found "
                f"{checkpoint.dtype(name)}. jaxlin does not read this kind of quantised weight."
            )


def _tokenizer_files(checkpoint: Checkpoint) -> tuple[Path, Path | None]:
    files = checkpoint.tokenizer_files
    if "tokenizer.json" not in files:
        raise TokenizerError(f"{checkpoint.source}: expected a tokenizer.json; found none.")
    return files["tokenizer.json"], files.get("tokenizer_config.json")


def _filled(abstract: Decoder, tensors: Tensors, port: Port, source: str) -> Decoder:
    """`abstract` with every parameter read, once, straight to its place in the stack.

    The parameter tree drives the reading, so that a missing tensor cannot go unseen; what it did not ask for is
    refused too.
    """
    there, used = set(tensors.names()), set()
    ignored = set(port.left_out)
    if abstract.config.tie_word_embeddings:
        ignored.add(f"{port.prefix}lm_head.weight")

    def one(name: str | Rows, shape: tuple[int, ...]) -> np.ndarray:
        rows = name if isinstance(name, Rows) else None
        tensor = name.tensor if isinstance(name, Rows) else name
        whole = shape if rows is None else (rows.total, *shape[1:])
        if tensor not in there:
            raise CheckpointError(f"{source}: expected a tensor {tensor} of shape {whole}; found none.")
        if tensors.shape(tensor) != whole:
            raise CheckpointError(f"{source}, tensor {tensor}: expected shape {whole}; found {tensors.shape(tensor)}.")
        used.add(tensor)
        values = tensors.read(tensor) if rows is None else tensors.read_rows(tensor, rows.start, rows.stop)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{source}, tensor {tensor}: expected finite values; found NaN or infinity.")
        return values

    def parameter(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = ".".join(key.name for key in path if key.name != "value")
        if not name.startswith("layers."):
            return jnp.asarray(one(tensor_of(name), leaf.shape))
        names = [tensor_of(name, i) for i in range(leaf.shape[0])]
        first = one(names[0], leaf.shape[1:])
        stack = np.empty(leaf.shape, first.dtype)
        stack[0] = first
        for row, name in enumerate(names[1:], 1):
            values = one(name, leaf.shape[1:])
            if (wider := np.promote_types(stack.dtype, values.dtype)) != stack.dtype:
                stack = stack.astype(wider)  # a file may keep some layers in more bits
            stack[row] = values
        return jnp.asarray(stack)

    renamed = port.names(abstract.config)

    def tensor_of(name: str, layer: int | None = None) -> str | Rows:
        found = renamed.get(name.removeprefix("layers."), name.removeprefix("layers."))
        before = port.prefix + ("" if name.startswith("lm_head.") else "model.")
        before += "" if layer is None else f"layers.{layer}."
        return before + found if isinstance(found, str) else found._replace(tensor=before + found.tensor)

    model = jax.tree_util.tree_map_with_path(parameter, abstract)
    extra = [n for n in sorted(there - used) if not any(fnmatch.fnmatch(n, pattern) for pattern in ignored)]
    if extra:
        raise CheckpointError(
            f"{source}: expected only tensors that the model has; found {', '.join(extra[:4])}"
            f"{f' and {len(extra) - 4} more' if len(extra) > 4 else ''}. They could change the output."
        )
    return model
