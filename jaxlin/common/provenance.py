"""Where models and prompts come from: notes beside objects, which change no value and no compiled program.

A result says which checkpoint and which prompt it belongs to. Neither is in the arrays that it is computed from, and as
a part of a pytree both would compile programs anew for every prompt. So `jaxlin.load` and `Decoder.embed` leave a note
of the object that they return, which is forgotten with the object; an array that is computed from another has none.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import jax
import jax.core
import numpy as np


@dataclass(frozen=True)
class Checkpoint:
    """What a model was loaded from.

    Attributes:
        name: the name that was given to `jaxlin.load`.
        revision: the commit of a repository on the hub; None for other checkpoints.
        digest: a hash of the configuration and of the beginning of each file of weights.
        tokenizer: the model's tokenizer, or None.
    """

    name: str
    revision: str | None
    digest: str
    tokenizer: Any


_CHECKPOINTS: weakref.WeakKeyDictionary[Any, Checkpoint] = weakref.WeakKeyDictionary()
_IDS: dict[int, tuple[weakref.ref[Any], tuple[int, ...]]] = {}


def note_checkpoint(model: Any, checkpoint: Checkpoint) -> None:
    """Remember what `model` was loaded from, as long as it exists."""
    _CHECKPOINTS[model] = checkpoint


def checkpoint_of(model: Any) -> Checkpoint | None:
    """What this very object was loaded from; None for a model that was made from another."""
    return _CHECKPOINTS.get(model)


def note_ids(x: Any, ids: Any) -> None:
    """Remember the token ids of the embeddings `x`, as long as they exist; nothing within a transform."""
    if isinstance(x, jax.core.Tracer) or isinstance(ids, jax.core.Tracer):
        return
    key = id(x)
    _IDS[key] = weakref.ref(x, lambda _: _IDS.pop(key, None)), tuple(np.asarray(ids).tolist())


def ids_of(x: Any) -> tuple[int, ...] | None:
    """The token ids of the embeddings `x`; None for an array that `Decoder.embed` did not return."""
    ids = getattr(x, "ids", None)  # of a prompt
    if ids is not None:
        return None if isinstance(ids, jax.core.Tracer) else tuple(np.asarray(ids).tolist())
    note = _IDS.get(id(x))
    return note[1] if note is not None and note[0]() is x else None
