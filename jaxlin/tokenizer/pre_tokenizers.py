"""Pre-tokenizers: the patterns that split a text into words before tokens are merged, and a table of those of GGUF."""

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _ENDINGS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = _WORDS % "{1,3}"
"""Words, and numbers of up to three digits: Llama 3, Phi 4, OLMo 2."""

SINGLE_DIGITS = _WORDS % ""
"""Words, and single digits: Qwen 2 and 3."""

MARKED_WORDS = SINGLE_DIGITS.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}")
"""The same, where marks such as accents are parts of words: Qwen 3.5."""

TEKKEN = _CASED_WORDS % ("", "", "")
"""Words, which also begin at an upper-case letter, and single digits: Mistral."""

O200K = _CASED_WORDS % (_ENDINGS + "?", _ENDINGS + "?", "{1,3}")
"""The same with English endings, and numbers of up to three digits: Phi 4 mini."""

DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ).replace(r"\r\n", "\r\n"),
)
"""The three patterns of DeepSeek 3, which are applied one after another."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
"""The part of a tokenizer.json that spells each byte as a character."""


@dataclass(frozen=True)
class GGUFPreTokenizer:
    """How the byte-level BPE of one kind of GGUF file encodes a text.

    Attributes:
        names: the values of ``tokenizer.ggml.pre`` in such files.
        pattern: a regular expression whose matches are the words that are merged apart, or several, each of which
            splits what the one before it gives; None for GPT-2's own. It must take time in proportion to the text, as
            the tests measure: a tokenizer.json with it runs in this process.
        digits: whether each digit is a word.
        nfc: whether characters are composed (Unicode's NFC) first.
        ignore_merges: whether a word that is a token becomes that token, whatever the merges are.
        add_bos: whether BOS is put before a text, if the file has no ``tokenizer.ggml.add_bos_token``.
        architectures: the values of ``general.architecture`` of files that have this pre-tokenizer and do not name it.
    """

    names: tuple[str, ...]
    pattern: str | tuple[str, ...] | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    architectures: tuple[str, ...] = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        """Those of `pattern`."""
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern or ()

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The pre-tokenizer of the `tokenizers` library."""
        if self.pattern is not None:
            splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
            return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]) if self.digits else gpt2


# To add a pre-tokenizer, add its name to a row, or add a row. The names, `ignore_merges` and `add_bos` are those of
# src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp; `nfc` is that of the same models' tokenizer.json.
GGUF_PRE_TOKENIZERS = (
    GGUFPreTokenizer(
        ("default", "gpt-2", "phi-2", "olmo", "mellum"), architectures=("phi2", "olmo", "olmoe", "gptneox", "gpt2")
    ),
    GGUFPreTokenizer(("smollm", "starcoder", "refact", "command-r"), digits=True),
    GGUFPreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"),
        CL100K,
        ignore_merges=True,
        add_bos=True,
        architectures=("llama",),
    ),
    GGUFPreTokenizer(("dbrx", "smaug-bpe"), CL100K, architectures=("phi3", "olmo2", "smollm3")),
    GGUFPreTokenizer(
        ("qwen2", "deepseek-r1-qwen", "megrez"),
        SINGLE_DIGITS,
        nfc=True,
        architectures=("qwen2", "qwen3", "qwen2moe", "qwen3moe", "qwen3next"),
    ),
    GGUFPreTokenizer(("qwen35",), MARKED_WORDS, nfc=True, architectures=("qwen35", "qwen35moe")),
    GGUFPreTokenizer(("stablelm2",), SINGLE_DIGITS),
    GGUFPreTokenizer(("tekken",), TEKKEN, ignore_merges=True, add_bos=True, architectures=("mistral3", "mistral4")),
    GGUFPreTokenizer(("gpt-4o", "llama4"), O200K, architectures=("llama4", "gpt-oss")),
    GGUFPreTokenizer(("deepseek-v3",), DEEPSEEK, architectures=("deepseek2",)),
)

PATTERNS = frozenset({*(p for row in GGUF_PRE_TOKENIZERS for p in row.patterns), r"\p{N}", r"\p{N}{1,3}"})
"""Patterns that take time in proportion to the text."""


def split_then_bytes(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer of a tokenizer.json that splits a text at a pattern, then spells each byte as a character."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
