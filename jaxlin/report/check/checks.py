"""`check_model`: all checks of a checkpoint, in order."""

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from jaxlin.checkpoint import open_checkpoint
from jaxlin.checkpoint.hub import locate
from jaxlin.common.errors import TokenizerError
from jaxlin.loading.model import SMALL, load
from jaxlin.nn.decoder import Decoder
from jaxlin.report.check.against import check_installed, transformers_line
from jaxlin.report.check.facts import facts_of
from jaxlin.report.check.numbers import LINES
from jaxlin.report.check.results import Line, ModelCheck
from jaxlin.report.check.texts import tokenizer_lines
from jaxlin.tokenizer import Tokenizer

PROMPTS = (
    "The bridge out of Marin is the longest of the three that cross the bay",
    "Once upon a time there was a girl who lived in a small house near the sea",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3]))",
    "Die Würde des Menschen ist unantastbar. Sie zu achten ist Verpflichtung aller",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233",
)
"""The texts on which logits are compared."""

TOKENS = 12
"""Tokens of each prompt; all have the same number, so that one compiled program serves them all."""


def check_model(
    name: str | os.PathLike[str] | None = None,
    *,
    against: Literal["transformers"] | None = None,
    revision: str | None = None,
    ignore_config_keys: Sequence[str] = (),
    on_facts: Callable[[dict[str, str]], None] = lambda facts: None,
    on_line: Callable[[Line], None] = lambda line: None,
) -> ModelCheck:
    """Check a checkpoint before its maps are relied on.

    Everything is computed in float32, and in float64 in JAX's 64-bit mode, which is switched back afterwards. The
    weights stay as they are stored and are widened one layer at a time, so that the checks take little more memory than
    the model; with `against`, transformers also loads all weights in float32.

    Args:
        name: a hub id, a directory or a ``.gguf`` file; by default the small model that ships with jaxlin.
        against: ``"transformers"`` compares logits with those of the installed transformers.
        revision: a branch, tag or commit of a hub id.
        ignore_config_keys: as in `jaxlin.load`.
        on_facts: called with the facts about the checkpoint as soon as it is loaded.
        on_line: called with each line as soon as it is measured.

    Raises:
        JaxlinError: transformers is requested and not installed; or the checkpoint is refused, as by `jaxlin.load`.
    """
    if against is not None:
        check_installed()
    path = locate(SMALL if name is None else name, revision)
    with _messages() as messages:
        model, tokenizer = load(path, dtype="float32", ignore_config_keys=ignore_config_keys)
    checkpoint = open_checkpoint(path)
    facts = facts_of(checkpoint, model, tokenizer)
    facts |= {f"note {i}": each for i, each in enumerate(messages, 1)}
    on_facts(facts)
    lines = []
    for line in _lines(model, tokenizer, None if against is None else functools.partial(transformers_line, path)):
        on_line(line)
        lines.append(line)
    return ModelCheck("the small model of jaxlin" if name is None else os.fspath(name), facts, tuple(lines))


def _lines(model: Decoder, tokenizer: Tokenizer | None, compare: Callable[..., Line] | None) -> Iterator[Line]:
    if tokenizer is not None:
        yield from tokenizer_lines(tokenizer, model.config)
    prompts = prompts_of(model, tokenizer)
    for line_of in (*LINES, compare):
        if line_of is not None:
            yield line_of(model, prompts)


def prompts_of(model: Decoder, tokenizer: Tokenizer | None) -> Int[np.ndarray, "n t"]:
    """The first ids of each of `PROMPTS`; random ids if there is no tokenizer, or none of its ids is the model's."""
    vocab = model.config.vocab_size
    tokens = min(TOKENS, model.config.max_position_embeddings or TOKENS)
    rows: list[list[int]] = [[]]
    if tokenizer is not None:
        with contextlib.suppress(TokenizerError):
            rows = [[token for token in tokenizer.encode(text) if token < vocab] for text in PROMPTS]
    if shortest := min(tokens, *map(len, rows)):
        return np.array([row[:shortest] for row in rows])
    return np.random.default_rng(0).integers(0, vocab, (len(PROMPTS), tokens))


@contextlib.contextmanager
def _messages() -> Iterator[list[str]]:
    """Collects warnings and log messages in the context, instead of printing them."""
    messages: list[str] = []
    log, handler = logging.getLogger("jaxlin"), logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    before, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            yield messages
        messages += [str(each.message) for each in warned if issubclass(each.category, UserWarning)]
    finally:
        log.removeHandler(handler)
        log.propagate = before
