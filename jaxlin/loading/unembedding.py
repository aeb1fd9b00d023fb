"""Decide which matrix computes the logits, from the tensors of a checkpoint, as transformers 5 does.

A config.json may say that the unembedding is the embedding matrix. It is, if only one of the two is stored or both have
equal values. If both are stored and differ, both are used, whatever the config says (`tie_weights` of
https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_utils.py).
"""

import fnmatch
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from jaxlin.common.errors import CheckpointError
from jaxlin.loading.parameters import TASK_HEADS
from jaxlin.loading.stored import TensorSource
from jaxlin.porting.port import Port
from jaxlin.quantized import PackedMatrix

LOG = logging.getLogger("jaxlin")

MAX_COMPARED = 2**22
"""The number of values of each matrix that are compared at a time."""

HEAD_CLASSES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""The endings of the names of transformers' classes that have an unembedding."""


def with_unembedding(config: Any, tensors: TensorSource, port: Port, architectures: Any, source: str) -> Any:
    """`config` with the `tie_word_embeddings` and `has_unembedding` that agree with the checkpoint's tensors.

    Args:
        config: the decoder's config, as config.json gives it.
        tensors: the checkpoint.
        port: the port, with the checkpoint's own names of tensors, see `Port.as_named`.
        architectures: the value of `architectures` in config.json, which names the classes that wrote the file.
        source: the path of the checkpoint, for messages.

    Raises:
        CheckpointError: there are no embeddings; or the class that wrote the file has an unembedding, and the file
            neither has it nor ties it to the embeddings.
    """
    names = set(tensors.names())
    embedding, head = (port.tensor_of(config, f"{name}.weight").tensor for name in ("embed_tokens", "lm_head"))
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
    task_heads = [reason for pattern, reason in TASK_HEADS.items() if fnmatch.filter(names, pattern)]
    headless = not port.bodies[0] or (classes and not any(c.endswith(HEAD_CLASSES) for c in classes))
    if not headless and not task_heads:
        raise CheckpointError(
            f"{source}: expected a tensor {head}; found none, and the config does not tie it to {embedding}. "
            "If it should, set tie_word_embeddings to true."
        )
    LOG.warning(
        "%s: the file has no unembedding%s: there are no logits, but everything else works.",
        source, f", but {task_heads[0]}" if task_heads else "",
    )  # fmt: skip
    return replace(config, has_unembedding=False)


def are_equal(tensors: TensorSource, one: str, other: str) -> bool:
    """Whether two matrices of a checkpoint have equal values; they are read some rows at a time."""
    shape = tensors.shape(one)
    if shape != tensors.shape(other) or len(shape) != 2:
        return False
    rows = max(1, MAX_COMPARED // max(1, shape[1]))
    first, second = (tensors.read(name) if tensors.is_packed(name) else name for name in (one, other))

    def values(matrix: Any, start: int) -> np.ndarray:
        stop = min(start + rows, shape[0])
        if isinstance(matrix, PackedMatrix):
            return np.asarray(matrix[start:stop], np.float64)
        return np.asarray(tensors.read_rows(matrix, start, stop), np.float64)

    return all(np.array_equal(values(first, start), values(second, start)) for start in range(0, shape[0], rows))
