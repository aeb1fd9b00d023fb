"""SentencePiece's BPE: a tokenizer.model, such as those of Llama 2, Mistral and Gemma, as a tokenizer.json.

The file is a protocol buffer. Its fields are those of ``sentencepiece_model.proto`` of
https://github.com/google/sentencepiece; the numbers of those that are read are named here.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.specs import added_token, prepend_token, tokenizer_json

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _BPE = 3, 2
_BOS, _EOS = (41, 1), (42, 2)
_CHARACTERS_MAP, _DUMMY_PREFIX, _REMOVE_SPACES = 2, 3, 4
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_SPACE = "\u2581"

_MAX_WORK = 2**28
"""A bound on the sum of the squared lengths of a vocabulary's tokens.

To find its merges each token is cut at every character, and a file could be made to take all memory. 262,144 tokens of
16 characters, SentencePiece's default maximum, come to a quarter of the bound.
"""


def sentencepiece_spec(data: bytes, config: dict[str, Any], source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tokenizer.json for a tokenizer.model, and its BOS and EOS tokens by name.

    Args:
        data: the content of the file.
        config: tokenizer_config.json. BOS is put before a text unless ``add_bos_token`` in it is false.
        source: the name of the file, for messages.

    Raises:
        TokenizerError: the file is of another kind, or its model is not BPE, or changes characters.
    """
    try:
        fields = list(_fields(data))
        pieces = [_piece(value) for number, value in fields if number == _PIECES]
        trainer, normalizer = (_last(fields, number) for number in (_TRAINER, _NORMALIZER))
    except (ValueError, LookupError, AttributeError, TypeError, struct.error) as error:
        raise TokenizerError(f"{source}: expected a SentencePiece model; found {error}."[:300]) from error
    if not pieces or trainer.get(_MODEL_TYPE, 1) != _BPE:
        kind = trainer.get(_MODEL_TYPE, 1) if pieces else "no pieces"
        raise TokenizerError(f"{source}: expected a SentencePiece model of type {_BPE}, BPE; found {quoted(kind)}.")
    if normalizer.get(_CHARACTERS_MAP) or normalizer.get(_REMOVE_SPACES, 1):
        raise TokenizerError(
            f"{source}: expected a SentencePiece model that does not normalise characters and spaces; found one that "
            "does. Use the model's tokenizer.json, which transformers writes with save_pretrained."
        )
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise TokenizerError(f"{source}: expected pieces that differ; found a duplicate.")
    prefix = bool(normalizer.get(_DUMMY_PREFIX, 1))
    scored = [(text, score) for text, score, kind in pieces if kind in (_NORMAL, _USER_DEFINED)]
    merges = merges_by_score([text for text, _ in scored], [score for _, score in scored], source)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [{"type": "Prepend", "prepend": _SPACE}, replace] if prefix else [replace]
    decoders = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}]
    decoders += [{"type": "Fuse"}] + ([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else [])
    unknown = next((text for text, _, kind in pieces if kind == _UNKNOWN), None)
    is_special = {_UNKNOWN: True, _CONTROL: True, _USER_DEFINED: False}
    # A user-defined piece is spelled with the vocabulary's sign for spaces, so it is looked for in normalised text.
    added = [
        added_token(text, i, special=is_special[kind], normalized=kind == _USER_DEFINED and not prefix)
        for i, (text, _, kind) in enumerate(pieces)
        if kind in is_special
    ]
    ids = {name: trainer.get(*field) for name, field in (("bos_token", _BOS), ("eos_token", _EOS))}
    named = {name: pieces[i][0] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(pieces)}
    bos = named.get("bos_token") if config.get("add_bos_token", True) is True else None
    model = {
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": any(kind == _BYTE for _, _, kind in pieces),
        "vocab": vocabulary,
        "merges": merges,
    }
    spec = tokenizer_json(
        model,
        added,
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        post_processor=prepend_token(bos, vocabulary),
        decoder={"type": "Sequence", "decoders": decoders},
    )
    return spec, named


def merges_by_score(vocabulary: Iterable[str], scores: list[float], source: str) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE: of all adjacent pieces, the pair whose union scores highest is merged first.

    Raises:
        TokenizerError: the pieces are so long that trying all their parts would take too much time and memory.
    """
    pieces = frozenset(vocabulary)
    if (work := sum(len(token) ** 2 for token in pieces)) > _MAX_WORK:
        raise TokenizerError(
            f"{source}: expected tokens whose squared lengths add up to at most {_MAX_WORK}; found {work}."
        )
    splits = [
        (-score, cut, len(token) - cut, token[:cut], token[cut:])
        for token, score in zip(vocabulary, scores, strict=True)
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    # Among equal scores longer left parts come first, as transformers sorts them.
    splits.sort(key=lambda split: (split[0], -split[1], -split[2]))
    return [(left, right) for *_, left, right in splits]


def _piece(data: Any) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    return fields[1].decode("utf-8"), score, fields.get(3, _NORMAL)


def _last(fields: list[tuple[int, Any]], number: int) -> dict[int, Any]:
    """The fields of the last message with a number, which is the one that counts."""
    return dict(_fields(next((value for each, value in reversed(fields) if each == number), b"")))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: of each, its number, and its value as an integer or as bytes.

    Raises:
        ValueError: the bytes are no message.
    """
    if not isinstance(data, bytes):
        raise ValueError("a number where a message is expected")
    offset = 0
    while offset < len(data):
        key, offset = _integer(data, offset)
        wire = key & 7
        if wire == 0:
            value, offset = _integer(data, offset)
        else:
            size, offset = _integer(data, offset) if wire == 2 else ({1: 8, 5: 4}.get(wire, 0), offset)
            if wire not in (1, 2, 5) or size > len(data) - offset:
                raise ValueError("bytes that are no message, or a part of one")
            value, offset = data[offset : offset + size], offset + size
        yield key >> 3, value


def _integer(data: bytes, offset: int) -> tuple[int, int]:
    """The integer that begins at an offset, of seven bits in each byte, and the offset after it."""
    number = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            # A negative integer is written as its complement in 64 bits.
            return (number - 2**64 if number >= 2**63 else number), offset
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
