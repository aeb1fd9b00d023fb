"""tokenizer.model: SentencePiece's BPE, as old files of Llama 2, Mistral and Gemma have it, as a tokenizer.json.

The file is a protocol buffer; what is read of it are the fields of ``sentencepiece_model.proto`` of
https://github.com/google/sentencepiece that are named here.
"""

import struct
from collections.abc import Iterator
from typing import Any

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.tokenizer.merges import pairs_by_score
from jaxlin.tokenizer.specs import added_token, begins_with, tokenizer_json

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _BPE = 3, 2
_BOS, _EOS = (41, 1), (42, 2)
_CHARACTERS_MAP, _DUMMY_PREFIX, _REMOVE_SPACES = 2, 3, 4
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_SPACE = "\u2581"


def sentencepiece_spec(data: bytes, config: dict[str, Any], source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tokenizer.json of a tokenizer.model, and the names of its BOS and EOS tokens.

    Args:
        data: the file.
        config: tokenizer_config.json, whose ``add_bos_token`` decides; BOS is put before a text if it says nothing.
        source: the file's name, for messages.

    Raises:
        TokenizerError: another kind of file, or a SentencePiece that is no BPE of unchanged characters.
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
            f"{source}: expected a SentencePiece model that leaves characters and spaces as they are; found one that "
            "maps them. Give the model's tokenizer.json, which transformers writes with save_pretrained."
        )
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise TokenizerError(f"{source}: expected pieces that differ; found one twice.")
    prefix = bool(normalizer.get(_DUMMY_PREFIX, 1))
    usual = [(text, score) for text, score, kind in pieces if kind in (_NORMAL, _USER_DEFINED)]
    pairs = pairs_by_score([text for text, _ in usual], [score for _, score in usual], source)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [{"type": "Prepend", "prepend": _SPACE}, replace] if prefix else [replace]
    back = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}]
    back += [{"type": "Fuse"}] + ([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else [])
    unknown = next((text for text, _, kind in pieces if kind == _UNKNOWN), None)
    marked = {_UNKNOWN: True, _CONTROL: True, _USER_DEFINED: False}
    # A piece of spaces is looked for where spaces are already written as the vocabulary writes them.
    added = [
        added_token(text, i, special=marked[kind], normalized=kind == _USER_DEFINED and not prefix)
        for i, (text, _, kind) in enumerate(pieces)
        if kind in marked
    ]
    ids = {name: trainer.get(*field) for name, field in (("bos_token", _BOS), ("eos_token", _EOS))}
    named = {name: pieces[i][0] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(pieces)}
    bos = named.get("bos_token") if config.get("add_bos_token", True) is True else None
    model = {
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": any(kind == _BYTE for _, _, kind in pieces),
        "vocab": vocabulary,
        "merges": pairs,
    }
    spec = tokenizer_json(
        model,
        added,
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        post_processor=begins_with(bos, vocabulary),
        decoder={"type": "Sequence", "decoders": back},
    )
    return spec, named


def _piece(data: Any) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    return fields[1].decode("utf-8"), score, fields.get(3, _NORMAL)


def _last(fields: list[tuple[int, Any]], number: int) -> dict[int, Any]:
    """The fields of the last message of a number."""
    return dict(_fields(next((value for each, value in reversed(fields) if each == number), b"")))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message, each its number and its integer or its bytes.

    Raises:
        ValueError: bytes that are no message.
    """
    if not isinstance(data, bytes):
        raise ValueError("a number where a message is expected")
    at = 0
    while at < len(data):
        key, at = _integer(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _integer(data, at)
        else:
            size, at = _integer(data, at) if wire == 2 else ({1: 8, 5: 4}.get(wire, 0), at)
            if wire not in (1, 2, 5) or size > len(data) - at:
                raise ValueError("bytes that are no message, or a message cut short")
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next field begins; negative ones are written in 64 bits."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (number - 2**64 if number >= 2**63 else number), at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
