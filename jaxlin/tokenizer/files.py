"""Reads the files of a checkpoint's folder that make up its tokenizer."""

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
from jaxlin.tokenizer.backend import Backend, TokenizerParts, make_backend
from jaxlin.tokenizer.pre_tokenizers import TEKKEN, split_then_bytes
from jaxlin.tokenizer.sentencepiece import sentencepiece_spec
from jaxlin.tokenizer.special_tokens import read_special_tokens
from jaxlin.tokenizer.tekken import tekken_spec

LOG = logging.getLogger("jaxlin")

_TEKKEN_TOKENS = {"[INST]", "[/INST]", "[AVAILABLE_TOOLS]"}
_MIN_TEKKEN_SIZE = 100_000


def read_parts(files: Mapping[str, Path]) -> TokenizerParts:
    """The parts of a tokenizer, from tokenizer.json, tekken.json or tokenizer.model and the files beside it.

    Args:
        files: the files that exist, by name.

    Raises:
        TokenizerError: a file cannot be read, or its content is not what it should be.
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
    special = read_special_tokens({**named, **config}, special_map, added, stored, beside)
    backend = make_backend(text, spec, special.added, source)
    if _has_wrong_pattern(spec, stored):
        LOG.warning(
            "%s: its pattern is not that with which its vocabulary was made, a fault of many files of 2025. The right "
            "pattern is used, as in transformers with fix_mistral_regex=True; without it transformers gives other ids.",
            source,
        )
        spec["pre_tokenizer"] = split_then_bytes(TEKKEN)
        backend = make_backend(json.dumps(spec), spec, special.added, source)
    bos = special.named.get("bos_token")
    _compare_bos(backend, bos, config.get("add_bos_token"), source)
    chat_template = _text(files, "chat_template.jinja") or config.get("chat_template")
    return TokenizerParts(backend, source, special.named, tuple(_stop_ids(files)), chat_template)


def _read(files: Mapping[str, Path], config: dict[str, Any]) -> tuple[Path, str, dict[str, Any], dict[str, str]]:
    """The tokenizer's file, its content as the text and object of a tokenizer.json, and the tokens that it names."""
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
    """Switch garbage collection off, while half a million merges are parsed: it would take half of the time."""
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


def _compare_bos(backend: Backend, bos: str | None, add_bos: Any, source: str) -> None:
    """Log a message if tokenizer_config.json and the post-processor of tokenizer.json disagree about BOS."""
    if bos is None or not isinstance(add_bos, bool):
        return
    begins = backend.encode("a", True)[:1] == [backend.token_to_id(bos)]
    if begins != add_bos:
        LOG.warning(
            "%s: its post-processor %s %s before a text, although tokenizer_config.json says add_bos_token: %s. "
            "The post-processor decides, as in transformers 5; prepend_bos=%s overrules it.",
            source,
            "puts" if begins else "does not put",
            quoted(bos),
            json.dumps(add_bos),
            add_bos,
        )


def _has_wrong_pattern(spec: dict[str, Any], stored: list[Any]) -> bool:
    """Whether the vocabulary is Tekken's, by its size and control tokens, but the pattern is another."""
    vocabulary = spec.get("model", {}).get("vocab", {})
    if len(vocabulary) <= _MIN_TEKKEN_SIZE or not {each["content"] for each in stored} >= _TEKKEN_TOKENS:
        return False
    return f'"Regex": {json.dumps(TEKKEN)}' not in json.dumps(spec.get("pre_tokenizer"))


def _stop_ids(files: Mapping[str, Path]) -> list[int]:
    value = _object(files, "generation_config.json").get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise TokenizerError(
            f"{files['generation_config.json']}, eos_token_id: expected an id or a list of them; found {quoted(value)}."
        )
    return ids
