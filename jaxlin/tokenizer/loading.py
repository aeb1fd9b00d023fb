"""The tokenizer of a checkpoint's folder: which of its files says how text becomes ids."""

import logging
from collections.abc import Mapping
from pathlib import Path

from jaxlin.common.errors import TokenizerError
from jaxlin.tokenizer.files import read_parts
from jaxlin.tokenizer.tokenizer import Tokenizer

LOG = logging.getLogger("jaxlin")

KINDS = ("tokenizer.json", "tekken.json", "tokenizer.model")
"""The files that hold a tokenizer; of several the first is read."""


def tokenizer_of(files: Mapping[str, Path], source: str) -> Tokenizer | None:
    """The tokenizer of a folder; None, with a logged message, if there is none.

    Args:
        files: the files beside config.json, by name: those of `jaxlin.checkpoint.folder.TOKENIZER_FILES` that exist.
        source: the folder, for the message.

    Raises:
        TokenizerError: a file that cannot be read.
    """
    if not any(name in files for name in KINDS):
        LOG.warning("%s: none of %s: the model is loaded without a tokenizer, for token ids.", source, ", ".join(KINDS))
        return None
    return Tokenizer(read_parts(files))


def required(tokenizer: Tokenizer | None, what: str) -> Tokenizer:
    """`tokenizer`, if there is one.

    Raises:
        TokenizerError: it is None, as for a checkpoint that has none.
    """
    if tokenizer is None:
        raise TokenizerError(
            f"{what} needs a tokenizer; found None: the checkpoint has no {', '.join(KINDS)}. Put that of the model "
            "into its folder, or use what takes token ids: model.embed, local_map, attribute."
        )
    return tokenizer
