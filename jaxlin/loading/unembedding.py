"""Which matrix gives the logits: decided by what a checkpoint holds, as transformers 5 decides it.

A config.json may claim that the unembedding is the embedding matrix. The claim holds if one of the two is stored, or
both with equal values; two matrices that differ are both used, whatever it says (`tie_weights` of
https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_utils.py).
"""

import fnmatch
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from jaxlin.common.errors import CheckpointError
from jaxlin.loading.parameters import OTHER_HEADS, Tensors
from jaxlin.porting.port import Port
from jaxlin.quantized import PackedMatrix

LOG = logging.getLogger("jaxlin")

BLOCK = 2**22
"""How many values of each matrix are compared at once."""

WITH_HEADS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""How the names of transformers' classes that have an unembedding end."""


def with_unembedding(config: Any, tensors: Tensors, port: Port, architectures: Any, source: str) -> Any:
    """`config`, its `tie_word_embeddings` and `has_unembedding` as the checkpoint decides them.

    Args:
        config: the decoder's config, as config.json has it.
        tensors: the checkpoint.
        port: as its tensors are named.
        architectures: what config.json names as the class that wrote the file.
        source: of the checkpoint, for messages.

    Raises:
        CheckpointError: no embeddings; or no unembedding in the file of a class that has one, and nothing tied to it.
    """
    names = set(tensors.names())
    embedding, head = (str(port.tensor_of(config, f"{name}.weight")) for name in ("embed_tokens", "lm_head"))
    tied = config.tie_word_embeddings
    if embedding not in names and not (tied and head in names):
        raise CheckpointError(
            f"{source}: expected a tensor {embedding}; found none" + (f", nor {head} tied to it." if tied else ".")
        )
    if embedding in names and head in names:
        if tied and not are_equal(tensors, embedding, head):
            LOG.warning(
                "%s: the config ties the unembedding to the embeddings, but %s and %s are stored and differ: "
                "both are used as they are stored.", source, embedding, head,
            )  # fmt: skip
            tied = False
        return replace(config, tie_word_embeddings=tied)
    if tied or head in names:
        return config
    classes = [name for name in architectures or () if isinstance(name, str)] if type(architectures) is list else []
    other = [what for pattern, what in OTHER_HEADS.items() if fnmatch.filter(names, pattern)]
    base = embedding.startswith("embed_tokens.") or (classes and not any(c.endswith(WITH_HEADS) for c in classes))
    if not base and not other:
        raise CheckpointError(
            f"{source}: expected a tensor {head}; found none, and the config does not tie it to {embedding}. "
            "If it should, set tie_word_embeddings to true."
        )
    LOG.warning(
        "%s: the file has no unembedding%s: there are no logits, all else works.",
        source, f", but {other[0]}" if other else "",
    )  # fmt: skip
    return replace(config, has_unembedding=False)


def are_equal(tensors: Tensors, one: str, other: str) -> bool:
    """Whether two matrices of a checkpoint have equal values; some rows at a time are read."""
    shape = tensors.shape(one)
    if shape != tensors.shape(other) or len(shape) != 2:
        return False
    rows = max(1, BLOCK // max(1, shape[1]))
    first, second = (tensors.read(name) if tensors.is_packed(name) else name for name in (one, other))

    def values(matrix: Any, start: int) -> np.ndarray:
        stop = min(start + rows, shape[0])
        if isinstance(matrix, PackedMatrix):
            return np.asarray(matrix[start:stop], np.float64)
        return np.asarray(tensors.read_rows(matrix, start, stop), np.float64)

    return all(np.array_equal(values(first, start), values(second, start)) for start in range(0, shape[0], rows))
