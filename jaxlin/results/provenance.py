"""`Provenance`: the checkpoint, prompt, settings and versions that a result is from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import jax
import jax.core
import numpy as np

from jaxlin.common.annotations import having
from jaxlin.common.arguments import checked
from jaxlin.common.files import checksum
from jaxlin.common.provenance import checkpoint_of, ids_of
from jaxlin.common.token_names import token_names

PACKAGES = ("jaxlin", "jax", "flax", "numpy")
"""The packages whose versions are noted."""

TOKEN_SETTINGS = ("target", "tokens")
"""The settings whose integers are token ids."""

T = TypeVar("T")


@dataclass(frozen=True)
class Provenance:
    """Where a result is from. What is not known is None.

    Attributes:
        model: the name that was given to `jaxlin.load`.
        revision: the commit of a repository on the hub.
        files: a hash of the configuration and of the beginning of each file of weights.
        architecture: the class of the model, its depth and its width.
        dtype: the precision of the computation.
        rule: the freeze rule.
        ids: the token ids of the prompt.
        settings: what else was asked for, such as the target and the position.
        versions: the versions of the packages.
        tokenizer: the model's tokenizer; of a result from a file, a hash of it.
        texts: the texts of token ids, of a result from a file.
    """

    model: str | None = None
    revision: str | None = None
    files: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    rule: str | None = None
    ids: tuple[int, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Any = None
    texts: Mapping[int, str] = field(default_factory=dict)

    def text(self, token: int) -> str | None:
        """The text of a token; None if it is not known."""
        if token in self.texts:
            return self.texts[token]
        return None if isinstance(self.tokenizer, str | None) else self.tokenizer.token(token)

    def word(self, token: int) -> str:
        """The text of a token as people read it, or its id if the text is not known."""
        text = self.text(int(token))
        return f"id {int(token)}" if text is None else token_names([text])[0]

    @cached_property
    def tokens(self) -> list[str] | None:
        """The text of each token of the prompt; None if it is not known."""
        texts = [self.text(token) for token in self.ids or ()]
        return None if not texts or None in texts else [str(text) for text in texts]

    @cached_property
    def names(self) -> list[str] | None:
        """The name of each token of the prompt, see `jaxlin.common.token_names`; None if it is not known."""
        return None if self.tokens is None else token_names(self.tokens)

    @cached_property
    def tokenizer_hash(self) -> str | None:
        """A hash of the tokenizer."""
        if isinstance(self.tokenizer, str | None):
            return self.tokenizer
        return checksum(self.tokenizer.to_json().encode("utf-8", "surrogatepass"))

    def to_dict(self, tokens: Sequence[int] = ()) -> dict[str, Any]:
        """Plain values for JSON, with the texts of the prompt and of other `tokens`; without what is not known."""
        settings = [value for key in TOKEN_SETTINGS if (value := self.settings.get(key)) is not None]
        asked = [each for value in settings for each in (value if isinstance(value, list) else [value])]
        used = (*(self.ids or ()), *tokens, *(each for each in asked if isinstance(each, int)))
        known = {each: text for each in used if (text := self.text(each)) is not None}
        values = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("tokenizer", "texts")
        }
        values["ids"] = None if self.ids is None else list(self.ids)
        values.update(tokenizer=self.tokenizer_hash, tokens=self.tokens, texts={str(key): known[key] for key in known})
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items() if value}

    def __getstate__(self) -> dict[str, Any]:
        """What `pickle` writes: a tokenizer is replaced by its hash and the texts of the prompt."""
        texts = {each: text for each in self.ids or () if (text := self.text(each)) is not None}
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**plain, "tokenizer": self.tokenizer_hash, "texts": {**self.texts, **texts}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@cache
def versions() -> dict[str, str]:
    """The versions of `PACKAGES`."""
    return {package: version(package) for package in PACKAGES}


@checked
def traced_to(
    result: T,
    model: Annotated[Any, having("a model, as jaxlin.load gives", "config", "rule", "edits")],
    x: Any = None,
    *,
    ids: Sequence[int] | None = None,
    tokenizer: Any = None,
    rule: Any = None,
    **settings: Any,
) -> T:
    """`result`, with the provenance that is known of it; without any within a transform of `model`.

    Args:
        result: a new result.
        model: the model it was computed with, and the tokenizer, if it is not that which was loaded with the model.
        x: the input embeddings, as `Decoder.embed` returned them.
        ids: the token ids of the prompt, if there are no embeddings.
        tokenizer: the tokenizer that was given.
        rule: the freeze rule, if not the model's own.
        settings: what else was asked for; an array is left out, as it says nothing to a reader.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((model, result))):
        return result
    checkpoint = checkpoint_of(model)
    config = model.config
    used = rule or model.rule
    if model.edits is not None:
        settings["edits"] = [repr(edit) for edit in model.edits.edits]
    provenance = Provenance(
        architecture=f"{type(model).__name__}, {config.num_hidden_layers} layers, {config.hidden_size} features",
        dtype=model.dtype,
        rule=used if isinstance(used, str) else repr(used),
        ids=tuple(ids) if ids is not None else None if x is None else ids_of(x),
        settings={name: plain for name, value in settings.items() if (plain := _plain(value)) is not None},
        versions=versions(),
        tokenizer=tokenizer,
    )
    if checkpoint is not None:
        provenance = replace(
            provenance,
            model=checkpoint.name,
            revision=checkpoint.revision,
            files=checkpoint.digest,
            tokenizer=checkpoint.tokenizer if tokenizer is None else tokenizer,
        )
    note(result, provenance)
    return result


@checked
def note(result: Any, provenance: Provenance | None) -> None:
    """Let a result, and the results that are parts of it, have this provenance."""
    if isinstance(result, list | tuple):
        for each in result:
            note(each, provenance)
    elif hasattr(type(result), "provenance"):
        result.__dict__["_provenance"] = provenance
        for each in fields(result):
            note(getattr(result, each.name), provenance)


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        parts = [_plain(each) for each in value]
        return None if None in parts else parts
    if np.ndim(value) == 0 and isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).item()
    if np.size(value) <= 2 and isinstance(value, np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    return None
