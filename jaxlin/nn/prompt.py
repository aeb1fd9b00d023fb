r"""Prompts: input embeddings, bound to the token ids that some models read beside them, and their checks.

Per-layer embeddings (Gemma 3n and 4) are rows of a table that each layer adds to its stream: their token ids are not
determined by the embeddings $x$. So `model.embed` of such a model returns a `Prompt`, which has the ids and behaves as
the array $x$ in every other way.
"""

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import kind_of, quoted
from jaxlin.common.provenance import note_ids
from jaxlin.nn.config import Config


class PromptError(JaxlinError):
    """A prompt that does not fit the model."""


@jax.tree_util.register_pytree_node_class
class Prompt:
    """Input embeddings, ``[t, d]``, and the token ids that they were made of.

    The embeddings are its only leaf: derivatives are with respect to them, and `jax.jacfwd` of a function of a prompt
    gives an array in the same dress. Arithmetic with arrays keeps the ids, and so does an index of several tokens; any
    other gives a plain array. The functions of jaxlin pass the ids as numbers (`dynamic`), so that their programs serve
    other prompts too; a program of your own, as of `jax.jit`, is compiled for the ids.
    """

    __array_priority__ = 100  # NumPy's operators leave the operation to those of this class

    def __init__(self, x: Any, ids: Any) -> None:
        self.x, self.ids = x, ids

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """The embeddings; the ids are static, or a leaf if they are an array."""
        return ((self.x,), self.ids) if isinstance(self.ids, tuple) else ((self.x, self.ids), None)

    @classmethod
    def tree_unflatten(cls, ids: Any, children: tuple[Any, ...]) -> "Prompt":
        """The prompt of these leaves."""
        return cls(*children, ids) if len(children) == 1 else cls(*children)

    def dynamic(self) -> "Prompt":
        """This prompt with its ids as an array, which a program takes as an argument."""
        return Prompt(self.x, jnp.asarray(self.ids))

    def __repr__(self) -> str:
        return f"Prompt({self.x!r}, ids={self.ids})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("x", "ids"):
            raise AttributeError(name)
        return getattr(self.x, name)

    def __len__(self) -> int:
        return len(self.x)

    def __jax_array__(self) -> Array:
        return jnp.asarray(self.x)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.x, dtype, copy=copy)

    def __getitem__(self, index: Any) -> Any:
        is_tokens = isinstance(index, slice) or (not isinstance(index, tuple) and np.ndim(index) == 1)
        if not is_tokens or not self._is_bound(self.x):
            return self.x[index]
        return Prompt(self.x[index], self.ids[index] if isinstance(index, slice) else jnp.asarray(self.ids)[index])

    def astype(self, dtype: Any) -> "Prompt":
        """The prompt with embeddings of another dtype."""
        return Prompt(self.x.astype(dtype), self.ids)

    def _is_bound(self, x: Any) -> bool:
        """Whether `x` has one embedding for each id, as a derivative has not."""
        return np.ndim(x) == 2 and np.shape(x)[0] == np.shape(self.ids)[0]

    def _with(self, function: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
        result = function(array_of(one), array_of(other))
        return Prompt(result, self.ids) if self._is_bound(self.x) and self._is_bound(result) else result

    def __add__(self, other: Any) -> Any:
        return self._with(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return self._with(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return self._with(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._with(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return self._with(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._with(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._with(operator.truediv, self, other)

    def __matmul__(self, other: Any) -> Any:
        return array_of(self) @ array_of(other)

    def __rmatmul__(self, other: Any) -> Any:
        return array_of(other) @ array_of(self)

    def __neg__(self) -> Any:
        return self * -1


class NotesIds:
    """The base of models whose method `embed` leaves a note of the ids beside the embeddings that it returns."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "embed" in vars(cls):
            embed = vars(cls)["embed"]

            @functools.wraps(embed)
            def noting(self: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
                x = embed(self, ids, *args, **kwargs)
                if not isinstance(x, Prompt):
                    note_ids(x, ids)
                return x

            setattr(cls, "embed", noting)  # noqa: B010  a type checker keeps the signature of `embed`


if TYPE_CHECKING:
    Embeddings = Array
else:
    Embeddings = Array | Prompt
"""The type of input embeddings; to a type checker a prompt is an array, as which it behaves."""


def array_of(x: Any) -> Any:
    """The embeddings of a prompt; anything else as it is."""
    return x.x if isinstance(x, Prompt) else x


def checked_embeddings(x: Any, d: int, dtype: str, *, reads_ids: bool) -> Any:
    """Return `x`, with its ids as an array if the model reads them, if it is embeddings of one token or more.

    Raises:
        PromptError: see `check_embeddings`; or the model reads ids, and `x` has none.
    """
    check_embeddings(array_of(x), d, dtype)
    if not reads_ids:
        return array_of(x)
    if not isinstance(x, Prompt):
        raise PromptError(
            "Embeddings: expected a prompt, as model.embed(ids) gives, because the layers of this model read the token "
            "ids besides; found an array without ids. Arithmetic with a prompt keeps them, as "
            "model.embed(ids) + change; jaxlin.nn.Prompt(x, ids) binds other embeddings to ids."
        )
    if np.shape(x.ids) != np.shape(x.x)[:1]:
        raise PromptError(
            f"Embeddings: expected as many token ids as embeddings; found {np.shape(x.ids)[0]} and {np.shape(x.x)[0]}."
        )
    return x.dynamic()


def bound_like(prompt: Any, x: Any) -> Any:
    """Other embeddings `x`, bound to the ids of `prompt` if it has any."""
    return Prompt(x, prompt.ids) if isinstance(prompt, Prompt) else x


def padded_prompt(x: Any, tokens: int) -> Any:
    """Embeddings with zeros after them, up to a number of tokens; the ids of these are 0."""
    missing = tokens - x.shape[0]
    stream = jnp.pad(array_of(x), ((0, missing), (0, 0)))
    return Prompt(stream, jnp.pad(jnp.asarray(x.ids), (0, missing))) if isinstance(x, Prompt) else stream


def check_ids(ids: Any, config: Config) -> np.ndarray:
    """Return `ids` as an array if they are a prompt.

    Raises:
        PromptError: no ids, an id outside the vocabulary, or more ids than the model's context.
    """
    try:
        ids = np.asarray(ids)
    except ValueError as error:  # NumPy's, of lists that are not of one length
        raise PromptError(f"Prompt: expected a list of token ids, not of lists; found {quoted(ids)}.") from error
    if ids.dtype.kind in "US":
        raise PromptError("Prompt: expected token ids; found text. tokenizer.encode(text) gives its ids.")
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise PromptError(f"Prompt: expected a list of one token id or more; found shape {ids.shape}, {ids.dtype}.")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        unknown = int(ids.min() if ids.min() < 0 else ids.max())
        raise PromptError(
            f"Prompt: expected token ids in 0..{config.vocab_size - 1}, those the model has embeddings for; "
            f"found {unknown}. A tokenizer may have more, as of images or of a fine-tune: leave them out."
        )
    if config.max_position_embeddings is not None and ids.size > config.max_position_embeddings:
        raise PromptError(
            f"Prompt: expected at most {config.max_position_embeddings} tokens, this model's context; "
            f"found {ids.size}. Shorten the prompt."
        )
    return ids


def check_embeddings(x: Any, d: int, dtype: str) -> None:
    """Refuse anything but embeddings of one token or more, of finite numbers in a dtype that is wide enough.

    Raises:
        PromptError: `x` is not of shape ``[t, d]``, its dtype is narrower than what the model computes in, or, where it
            is not traced, an entry is not finite.
    """
    shape = getattr(x, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] == 0 or shape[1] != d:
        received = kind_of(x) if shape is None else f"shape {tuple(shape)}"
        raise PromptError(
            f"Embeddings: expected shape (t, {d}), one token or more, as model.embed(ids) gives; found {received}."
            + (" tokenizer.encode(text) gives the ids of a text." if isinstance(x, str) else "")
        )
    if not jnp.issubdtype(getattr(x, "dtype", object), jnp.floating):
        raise PromptError(f"Embeddings: expected floats, as model.embed(ids) gives; found {x.dtype}.")
    if jnp.finfo(x.dtype).bits < jnp.finfo(dtype).bits:
        raise PromptError(
            f"Embeddings: expected {dtype}, what this model computes in; found {x.dtype}, in which all of it "
            f'would be computed. Widen them: x.astype("{dtype}").'
        )
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return
    finite = np.isfinite(np.asarray(x)).all(axis=1)
    if not finite.all():
        raise PromptError(
            f"Embeddings: expected finite numbers; found NaN or infinity at position {int(np.argmin(finite))}."
        )
