"""tekken.json: Mistral's byte-level BPE, whose tokens stand in the order in which they are merged, as a tokenizer.json.

The layout is that of https://github.com/mistralai/mistral-common: special tokens take the first ids, and as many ids
as ``default_num_special_tokens`` says are kept for them; ``default_vocab_size`` cuts the other tokens.
"""

import base64
import binascii
from typing import Any

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.byte_tokens import spelled
from jaxlin.tokenizer.specs import added_token, begins_with, tokenizer_json

_MOST_SPECIAL = 100_000
_LONGEST = 1000
_NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
_WORDS = ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS")
_UNNAMED = (
    *("<unk>", "<s>", "</s>"),
    *(mark for word in _WORDS for mark in (f"[{word}]", f"[/{word}]")),
    *("[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""The special tokens of files that do not list them, in the order of their ids."""


def tekken_spec(file: dict[str, Any], config: dict[str, Any], source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tokenizer.json of a tekken.json, and the names of its BOS and EOS tokens.

    Args:
        file: the file's object.
        config: tokenizer_config.json, whose ``add_bos_token`` decides; BOS is put before a text if it says nothing.
        source: the file's name, for messages.

    Raises:
        TokenizerError: an object of another kind.
    """
    try:
        settings = file["config"]
        pattern, size, n_special = (
            settings.get(key) for key in ("pattern", "default_vocab_size", "default_num_special_tokens")
        )
        listed = file.get("special_tokens") or [{"rank": i, "token_str": text} for i, text in enumerate(_UNNAMED)]
        special = [each["token_str"] for each in sorted(listed, key=lambda each: each["rank"])]
        n_special = len(special) if n_special is None else n_special
        if not isinstance(pattern, str) or not len(special) <= n_special <= _MOST_SPECIAL:
            raise ValueError("no pattern, or more special tokens than are said to be")
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
    vocabulary |= {spelled(word): rank + n_special for word, rank in ranks.items()}
    if len(vocabulary) != len(special) + len(words) or any(len(word) > _LONGEST for word in words):
        raise TokenizerError(f"{source}: expected tokens that differ, of at most {_LONGEST} bytes; found others.")
    pairs = [pair for word, rank in ranks.items() for pair in _parts(word, ranks)]
    bos = _NAMED["bos_token"] if config.get("add_bos_token", True) is True and "<s>" in vocabulary else None
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spec = tokenizer_json(
        {"ignore_merges": True, "vocab": vocabulary, "merges": pairs},
        [added_token(text, i, special=True) for i, text in enumerate(special)],
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, plain]},
        post_processor=begins_with(bos, vocabulary),
        decoder=plain,
    )
    return spec, {name: text for name, text in _NAMED.items() if text in vocabulary}


def _parts(word: bytes, ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """The pairs of tokens that a token is made of, the one of earlier tokens first."""
    cuts = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
    known = [(left, right) for left, right in cuts if left in ranks and right in ranks]
    return [(spelled(left), spelled(right)) for left, right in sorted(known, key=lambda pair: [*map(ranks.get, pair)])]
