"""What a checkpoint is, in words: its family, format and size, and the keys of its config that are not used."""

import math
from collections import Counter

import jax

from jaxlin.checkpoint.config import ConfigReader, without_keys
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.common.printable import printable, quoted
from jaxlin.loading.registry import port_for
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.modules import without_values
from jaxlin.quantized import open_quantized
from jaxlin.tokenizer import Tokenizer


def facts_of(checkpoint: CheckpointFolder | GGUFFile, model: Decoder, tokenizer: Tokenizer | None) -> dict[str, str]:
    """Facts about a checkpoint and the model that was loaded from it, by name."""
    config = model.config
    key = "model_type" if isinstance(checkpoint, CheckpointFolder) else "general.architecture"
    if not config.has_unembedding:
        head = "none, so the model gives no logits"
    else:
        head = "tied to the embeddings" if model.unembedding.weight is None else "a matrix of its own"
    return {
        "family": f"{type(model).__module__.rpartition('.')[2]}; {key} {quoted(checkpoint.config.get(key), 60)}",
        "format": f"{'GGUF' if isinstance(checkpoint, GGUFFile) else checkpoint.format}, {_dtypes(checkpoint)}",
        "size": f"{_parameters(model):,} parameters; {config.num_hidden_layers} layers, {config.hidden_size} features",
        "unembedding": head,
        "tokenizer": "none" if tokenizer is None else f"{tokenizer.vocab_size} ids, {config.vocab_size} embeddings",
        **_ignored(checkpoint, model),
    }


def _ignored(checkpoint: CheckpointFolder | GGUFFile, model: Decoder) -> dict[str, str]:
    """The keys of the config that were not used to make the model, and why."""
    reasons = []
    if ignored := model.config.ignored_config_keys:
        reasons.append(f"{', '.join(map(printable, ignored))}: ignored as requested")
    if isinstance(checkpoint, CheckpointFolder):
        reader = ConfigReader(without_keys(checkpoint.config, ignored, checkpoint.source), checkpoint.source)
        tensors = open_quantized(checkpoint, reader)
        port_for(reader.peek("model_type")).as_named(tuple(tensors.names()), checkpoint.source).translate(reader)
        if unread := reader.unread():
            reasons.append(f"{', '.join(map(printable, unread))}: without effect on the logits in transformers")
    return {"unused keys": "; ".join(reasons)} if reasons else {}


def _dtypes(checkpoint: CheckpointFolder | GGUFFile) -> str:
    """The dtypes of the tensors; the one that most values have comes first."""
    counts: Counter[str] = Counter()
    for name in checkpoint.names():
        counts[checkpoint.dtype(name)] += math.prod(checkpoint.shape(name))
    total = sum(counts.values()) or 1
    shares = {dtype: count / total for dtype, count in counts.most_common(5)}
    if len(shares) == 1:
        return printable(next(iter(shares)))
    # Quantised formats store packed weights and their scales in two dtypes; the share of the norms may round to zero.
    return ", ".join(
        printable(dtype) + (f" {share:.1%}" if share >= 5e-4 else " <0.1%") for dtype, share in shares.items()
    )


def _parameters(model: Decoder) -> int:
    """The number of parameters of the model, in whatever format they are stored."""
    abstract = without_values(lambda rngs: type(model)(model.config, rngs=rngs))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))
