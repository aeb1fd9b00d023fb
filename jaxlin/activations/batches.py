"""Several prompts of unequal lengths in one call, padded to few lengths, so that a new length compiles no program.

A prompt is padded on the right, where no token of it sees the padding: layers read earlier tokens alone. What is
returned has no padding, and is to rounding that of the prompt by itself.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from jaxlin.activations.recording import Activations, record
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import quoted
from jaxlin.common.progress import progress_bar
from jaxlin.common.provenance import ids_of
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import PromptError, padded_prompt
from jaxlin.nn.site_names import ENDS
from jaxlin.nn.sites import InnerSite
from jaxlin.tokenizer import Tokenizer

SHORTEST = 32
"""The least length that a prompt is padded to; longer ones are padded to twice, four times … as much."""

R = TypeVar("R")


class Batch(list[R]):
    """The results of several prompts, in their order: a list, and a table with one row a prompt.

    Attributes:
        tokens: the number of tokens of each prompt.
        texts: the text of each prompt, or None where it is not known.
    """

    def __init__(self, results: Sequence[R], tokens: Sequence[int], texts: Sequence[str | None]) -> None:
        super().__init__(results)
        self.tokens, self.texts = list(tokens), list(texts)

    def table(self) -> dict[str, list[Any]]:
        """Columns by name, with one row a prompt: its text, its number of tokens, and the numbers of its result."""
        columns: dict[str, list[Any]] = {"prompt": self.texts, "tokens": self.tokens}
        for result in self[:1]:
            names = [each.name for each in dataclasses.fields(result)] if dataclasses.is_dataclass(result) else []
            names += [name for name in (*getattr(result, "PROPERTIES", ()), "defect") if hasattr(result, name)]
            for name in names:
                values = [getattr(each, name) for each in self]
                if name not in columns and all(isinstance(value, int | float) for value in values):
                    columns[name] = values
        return columns


@checked
def record_batch(
    model: Decoder,
    prompts: Sequence[Any],
    sites: Any = None,
    *,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
) -> Batch[Activations]:
    """`record` of each of several prompts of any lengths.

    Args:
        model: any decoder.
        prompts: input embeddings, token ids or, with a `tokenizer`, texts.
        sites: as of `record`.
        tokenizer: the model's tokenizer, which encodes texts.
        progress: show a progress bar if it takes more than a second.

    Raises:
        PromptError: no prompts, one that is invalid, or a text without a tokenizer.
        SiteError: the model has no such site or layer.
    """

    def recorded(padded: Any, tokens: int, index: int) -> Activations:
        return _first_tokens(record(model, padded, sites), tokens)

    return map_prompts(model, prompts, recorded, tokenizer=tokenizer, progress=progress)


@checked
def map_prompts(
    model: Decoder,
    prompts: Sequence[Any],
    function: Callable[[Any, int, int], R],
    *,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
) -> Batch[R]:
    """The results of `function` for each of several prompts, which the other functions for batches are made of.

    Args:
        model: any decoder.
        prompts: input embeddings, token ids or, with a `tokenizer`, texts.
        function: gets the padded embeddings of a prompt, its number of tokens and its index among the prompts.
        tokenizer: the model's tokenizer, which encodes texts.
        progress: show a progress bar if it takes more than a second.

    Raises:
        PromptError: no prompts, one that is invalid, or a text without a tokenizer.
    """
    check_not_traced("Batch", model, prompts)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not len(prompts):
        raise PromptError(f"Prompts: expected a list of one prompt or more; found {quoted(prompts)}.")
    padded = [_padded(model, prompt, tokenizer) for prompt in prompts]
    results = []
    for index, (x, tokens, ids) in enumerate(progress_bar(padded, show=progress, unit="prompt", desc="prompts")):
        result = function(x, tokens, index)
        provenance = getattr(result, "provenance", None)
        if provenance is not None:
            result.__dict__["_provenance"] = dataclasses.replace(provenance, ids=ids)
        results.append(result)
    texts = [prompt if isinstance(prompt, str) else None for prompt in prompts]
    return Batch(results, [tokens for _, tokens, _ in padded], texts)


def padded_length(model: Decoder, tokens: int) -> int:
    """The length that a prompt of `tokens` is padded to: a power of two, within the context of the model.

    Where rotary frequencies depend on the length and would be others, the prompt is not padded.
    """
    length, context = max(SHORTEST, 1 << (tokens - 1).bit_length()), model.config.max_position_embeddings
    length = length if context is None else max(tokens, min(length, context))
    return length if model.same_frequencies(length, tokens) else tokens


def each_or_all(values: Any, count: int, name: str) -> list[Any]:
    """One of `values` for each of `count` prompts: a list has one for each, anything else is the same for all.

    Raises:
        JaxlinError: a list of another length.
    """
    if not isinstance(values, list):
        return [values] * count
    if len(values) != count:
        raise JaxlinError(f"{name}: expected one for each of {count} prompts, or one for all; found {len(values)}.")
    return values


def _padded(model: Decoder, prompt: Any, tokenizer: Any) -> tuple[Any, int, tuple[int, ...] | None]:
    """The padded embeddings of a prompt, its number of tokens, and their ids where they are known."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise PromptError("Prompts: expected token ids or embeddings; found text. Pass tokenizer= to encode it.")
        prompt = tokenizer.encode(prompt)
    if len(getattr(prompt, "shape", ())) == 2 or hasattr(prompt, "ids"):
        model.check_embeddings(prompt)
        tokens = prompt.shape[0]
        return padded_prompt(prompt, padded_length(model, tokens)), tokens, ids_of(prompt)
    ids = model.check_ids(prompt).tolist()
    tokens = len(ids)
    # The ids are padded and not their embeddings, or a new length would compile a lookup and a padding of its own.
    return model.embed(ids + [0] * (padded_length(model, tokens) - tokens)), tokens, tuple(ids)


def _first_tokens(activations: Activations, tokens: int) -> Activations:
    """The activations at the first `tokens` positions, which no later one affects."""

    def first(name: str, value: Any, axis: int) -> Any:
        if name == InnerSite.PATTERN:
            return jax.tree.map(lambda a: a[..., :tokens, :tokens], value)
        return jax.tree.map(lambda a: a[(slice(None),) * axis + (slice(tokens),)], value)

    stacks = {name: first(name, value, 0 if name in ENDS else 1) for name, value in activations.stacks.items()}
    single = {
        name: {layer: first(name, value, 0) for layer, value in layers.items()}
        for name, layers in activations.single.items()
    }
    return Activations(stacks, single, activations.depth)
