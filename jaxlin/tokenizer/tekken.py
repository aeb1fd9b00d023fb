"""Mistral's byte-level BPE: a tekken.json, which lists tokens in the order of their merges, as a tokenizer.json.

The layout is that of https://github.com/mistralai/mistral-common. The first ``default_num_special_tokens`` ids belong
to special tokens; of the listed tokens, as many count as bring the vocabulary to ``default_vocab_size``.
"""

import base64
import binascii
from typing import Any

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.byte_tokens import spell_bytes
from jaxlin.tokenizer.pre_tokenizers import BYTE_LEVEL, split_then_bytes
from jaxlin.tokenizer.specs import added_token, prepend_token, tokenizer_json

_MAX_SPECIAL = 100_000
_MAX_LENGTH = 1000
_NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
_WORDS = ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS")
_DEFAULT_SPECIAL = (
    *("<unk>", "<s>", "</s>"),
    *(mark for word in _WORDS for mark in (f"[{word}]", f"[/{word}]")),
    *("[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""The special tokens of files that do not list them, in the order of their ids."""


def tekken_spec(file: dict[str, Any], config: dict[str, Any], source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tokenizer.json for a tekken.json, and its BOS and EOS tokens by name.

    Args:
        file: the object in the file.
        config: tokenizer_config.json. BOS is put before a text unless ``add_bos_token`` in it is false.
        source: the name of the file, for messages.

    Raises:
        TokenizerError: the object is of another kind.
    """
    try:
        settings = file["config"]
        pattern, size, n_special = (
            settings.get(key) for key in ("pattern", "default_vocab_size", "default_num_special_tokens")
        )
        listed = file.get("special_tokens") or [
            {"rank": i, "token_str": text} for i, text in enumerate(_DEFAULT_SPECIAL)
        ]
        special = [each["token_str"] for each in sorted(listed, key=lambda each: each["rank"])]
        n_special = len(special) if n_special is None else n_special
        if not isinstance(pattern, str) or not len(special) <= n_special <= _MAX_SPECIAL:
            raise ValueError("no pattern, or more special tokens than default_num_special_tokens")
        if not all(isinstance(text, str) for text in special):
            raise ValueError(f"special tokens {quoted(special, 100)}")
        special += [f"<SPECIAL_{i}>" for i in range(len(special), n_special)]
        listed = file["vocab"] if size is None else file["vocab"][: size - n_special]
        words = [base64.b64decode(each["token_bytes"], validate=True) for each in listed]
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise TokenizerError(
            f"{source}: expected a tekken.json; found {type(error).__name__}: {error}."[:300]
        ) from error
    ranks = {word: rank for rank, word in enumerate(words)}
    vocabulary = {text: i for i, text in enumerate(special)}
    vocabulary |= {spell_bytes(word): rank + n_special for word, rank in ranks.items()}
    if len(vocabulary) != len(special) + len(words) or any(len(word) > _MAX_LENGTH for word in words):
        raise TokenizerError(f"{source}: expected tokens that differ, of at most {_MAX_LENGTH} bytes; found others.")
    merges = [pair for word, rank in ranks.items() for pair in _parts(word, ranks)]
    bos = _NAMED["bos_token"] if config.get("add_bos_token", True) is True and "<s>" in vocabulary else None
    spec = tokenizer_json(
        {"ignore_merges": True, "vocab": vocabulary, "merges": merges},
        [added_token(text, i, special=True) for i, text in enumerate(special)],
        normalizer=None,
        pre_tokenizer=split_then_bytes(pattern),
        post_processor=prepend_token(bos, vocabulary),
        decoder=BYTE_LEVEL,
    )
    return spec, {name: text for name, text in _NAMED.items() if text in vocabulary}


def _parts(word: bytes, ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """The pairs of tokens that make up a token, ordered by the ranks of their tokens."""
    cuts = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
    pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
    return [
        (spell_bytes(left), spell_bytes(right))
        for left, right in sorted(pairs, key=lambda pair: [*map(ranks.get, pair)])
    ]
