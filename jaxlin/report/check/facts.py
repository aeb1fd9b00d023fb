"""What a checkpoint is, in words: its family, format and size, and what of it is not used."""

import math
from collections import Counter

import jax
from flax import nnx

from jaxlin.checkpoint.config import ConfigReader, without_keys
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.common.printable import printable, quoted
from jaxlin.loading.registry import port_for
from jaxlin.nn.decoder import Decoder
from jaxlin.quantized.methods import open_quantized
from jaxlin.tokenizer import Tokenizer


def facts_of(checkpoint: CheckpointFolder | GGUFFile, model: Decoder, tokenizer: Tokenizer | None) -> dict[str, str]:
    """What `checkpoint` is, and what `model` made of it."""
    config = model.config
    key = "model_type" if isinstance(checkpoint, CheckpointFolder) else "general.architecture"
    if not config.has_unembedding:
        head = "none: no logits"
    else:
        head = "the embeddings, tied" if model.unembedding.weight is None else "its own"
    return {
        "family": f"{type(model).__module__.rpartition('.')[2]}; {key} {quoted(checkpoint.config.get(key), 60)}",
        "format": f"{'GGUF' if isinstance(checkpoint, GGUFFile) else checkpoint.format}, {_dtypes(checkpoint)}",
        "size": f"{_parameters(model):,} parameters; {config.num_hidden_layers} layers, {config.hidden_size} features",
        "head": head,
        "tokenizer": "none" if tokenizer is None else f"{tokenizer.vocab_size} ids, {config.vocab_size} embeddings",
        **_ignored(checkpoint, model),
    }


def _ignored(checkpoint: CheckpointFolder | GGUFFile, model: Decoder) -> dict[str, str]:
    """The keys of the config that the model was made without, and why."""
    reasons = []
    if asked := model.config.ignored_config_keys:
        reasons.append(f"{', '.join(map(printable, asked))}: as asked")
    if isinstance(checkpoint, CheckpointFolder):
        reader = ConfigReader(without_keys(checkpoint.config, asked, checkpoint.source), checkpoint.source)
        tensors = open_quantized(checkpoint, reader)
        port_for(reader.peek("model_type")).as_named(tuple(tensors.names()), checkpoint.source).translate(reader)
        if unread := reader.unread():
            reasons.append(f"{', '.join(map(printable, unread))}: measured to change no logits in transformers")
    return {"ignored": "; ".join(reasons)} if reasons else {}


def _dtypes(checkpoint: CheckpointFolder | GGUFFile) -> str:
    """The dtypes of the tensors, that of most values first."""
    counts: Counter[str] = Counter()
    for name in checkpoint.names():
        counts[checkpoint.dtype(name)] += math.prod(checkpoint.shape(name))
    total = sum(counts.values()) or 1
    shares = {dtype: count / total for dtype, count in counts.most_common(5)}
    if len(shares) == 1:
        return printable(next(iter(shares)))
    # A format's names, such as those of packed weights and their scales; the share of most norms rounds to nothing.
    return ", ".join(
        printable(dtype) + (f" {share:.1%}" if share >= 5e-4 else " <0.1%") for dtype, share in shares.items()
    )


def _parameters(model: Decoder) -> int:
    """How many numbers the model is made of, whatever format they are in."""
    abstract = jax.eval_shape(lambda: type(model)(model.config, rngs=nnx.Rngs(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))
