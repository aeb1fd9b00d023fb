"""The files of a folder that make a tokenizer, read into what a `Tokenizer` is made of."""

import gc
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlin.common.errors import CheckpointError, TokenizerError
from jaxlin.common.files import check_regular_file, read_json
from jaxlin.common.printable import quoted
from jaxlin.common.strict_json import parse_object
from jaxlin.tokenizer.backend import Backend, backend_of
from jaxlin.tokenizer.parts import Parts
from jaxlin.tokenizer.sentencepiece import sentencepiece_spec
from jaxlin.tokenizer.special_tokens import special_tokens
from jaxlin.tokenizer.splits import TEKKEN
from jaxlin.tokenizer.tekken import tekken_spec

LOG = logging.getLogger("jaxlin")

_TEKKEN_TOKENS = {"[INST]", "[/INST]", "[AVAILABLE_TOOLS]"}
_LARGE = 100_000


def read_parts(files: Mapping[str, Path]) -> Parts:
    """What a tokenizer is made of, from tokenizer.json, tekken.json or tokenizer.model and the files beside it.

    Args:
        files: those that exist, by name.

    Raises:
        TokenizerError: a file that cannot be read, or does not hold what it should.
    """
    config, special_map, added = (
        _object(files, name) for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    path, text, spec, named = _read(files, config)
    source = str(path)
    stored = spec.get("added_tokens") or []
    if not isinstance(stored, list) or not all(isinstance(each, dict) for each in stored):
        raise TokenizerError(f"{source}, added_tokens: expected a list of objects; found {quoted(stored)}.")
    beside = str(files.get("tokenizer_config.json", path))
    special = special_tokens({**named, **config}, special_map, added, stored, beside)
    backend = backend_of(text, spec, special.added, source)
    if _is_split_wrongly(spec, stored):
        LOG.warning(
            "%s: its pattern is not the one that its vocabulary was made with, a fault of many files of 2025. The "
            "right one is used, as by fix_mistral_regex=True in transformers, which without it gives other ids.",
            source,
        )
        spec["pre_tokenizer"] = _TEKKEN_SPLIT
        backend = backend_of(json.dumps(spec), spec, special.added, source)
    bos = special.named.get("bos_token")
    _compare_bos(backend, bos, config.get("add_bos_token"), source)
    chat_template = _text(files, "chat_template.jinja") or config.get("chat_template")
    return Parts(backend, source, special.named, tuple(_stop_ids(files)), chat_template)


def _read(files: Mapping[str, Path], config: dict[str, Any]) -> tuple[Path, str, dict[str, Any], dict[str, str]]:
    """The file that the tokenizer is in, a tokenizer.json's text and object, and tokens that the file itself names."""
    if path := files.get("tokenizer.json"):
        return path, *_tokenizer_json(path), {}
    if path := files.get("tekken.json"):
        spec, named = tekken_spec(_object(files, "tekken.json"), config, str(path))
    else:
        path = files["tokenizer.model"]
        try:
            spec, named = sentencepiece_spec(path.read_bytes(), config, str(path))
        except OSError as error:
            raise TokenizerError(f"{path}: cannot be read: {error.strerror}.") from error
    return path, json.dumps(spec), spec, named


def _tokenizer_json(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        check_regular_file(path)
        text = path.read_text(encoding="utf-8")
        with _without_collector():
            return text, parse_object(text)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: expected a tokenizer; found {error}."[:300]) from error


@contextmanager
def _without_collector() -> Iterator[None]:
    """No search for cycles while half a million pairs of merges are made, which none of them is in: twice as fast."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _text(files: Mapping[str, Path], name: str) -> str | None:
    try:
        return files[name].read_text(encoding="utf-8") if name in files else None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{files[name]}: cannot be read: {error}."[:300]) from error


def _object(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    try:
        return read_json(files[name]) if name in files else {}
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error


def _compare_bos(backend: Backend, bos: str | None, asked: Any, source: str) -> None:
    """Say it once where tokenizer_config.json asks for another beginning of texts than tokenizer.json gives."""
    if bos is None or not isinstance(asked, bool):
        return
    begins = backend.encode("a", True)[:1] == [backend.token_to_id(bos)]
    if begins != asked:
        LOG.warning(
            "%s: its post-processor %s %s before a text, although tokenizer_config.json says add_bos_token: %s. "
            "The post-processor decides, as in transformers 5; prepend_bos=%s gives the other.",
            source,
            "puts" if begins else "does not put",
            quoted(bos),
            json.dumps(asked),
            asked,
        )


_TEKKEN_SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": TEKKEN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


def _is_split_wrongly(spec: dict[str, Any], stored: list[Any]) -> bool:
    """Whether a vocabulary of Tekken, which its control tokens give away, is split at another pattern than Tekken's."""
    vocabulary = spec.get("model", {}).get("vocab", {})
    if len(vocabulary) <= _LARGE or not {each["content"] for each in stored} >= _TEKKEN_TOKENS:
        return False
    return f'"Regex": {json.dumps(TEKKEN)}' not in json.dumps(spec.get("pre_tokenizer"))


def _stop_ids(files: Mapping[str, Path]) -> list[int]:
    found = _object(files, "generation_config.json").get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise TokenizerError(
            f"{files['generation_config.json']}, eos_token_id: expected an id or a list of them; found {quoted(found)}."
        )
    return ids
