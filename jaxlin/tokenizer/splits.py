"""How text is split before tokens are merged: the patterns of real tokenizers, and a row for each that GGUF names."""

from dataclasses import dataclass

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
"""Words, and numbers of three digits: Llama 3, Phi 4, OLMo 2."""

QWEN = _WORDS % ""
"""Words, and each digit apart."""

TEKKEN = _CASED_WORDS % ("", "", "")
"""Words that begin anew at an upper-case letter, and each digit apart."""

O200K = _CASED_WORDS % (_ENDINGS + "?", _ENDINGS + "?", "{1,3}")
"""The same with English endings, and numbers of three digits: Phi 4 mini."""

DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ).replace(r"\r\n", "\r\n"),
)
"""DeepSeek 3's three, one after another."""

PATTERNS = frozenset({CL100K, QWEN, TEKKEN, O200K, *DEEPSEEK, r"\p{N}", r"\p{N}{1,3}"})
"""Patterns that are known to take time in proportion to the text."""


@dataclass(frozen=True)
class Split:
    """How the byte-level BPE of one kind of GGUF file goes about a text.

    Attributes:
        names: what such files say in ``tokenizer.ggml.pre``.
        pattern: what a text is split at; GPT-2's own if None.
        digits: whether each digit is set apart first.
        nfc: whether characters are composed first.
        whole_words: whether a word that is a token is taken whole, whatever the merges.
        bos: whether BOS is put before a text unless the file says otherwise.
        architectures: the ``general.architecture`` of files that do not name it, and have such a tokenizer.
    """

    names: tuple[str, ...]
    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False
    architectures: tuple[str, ...] = ()

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The same as a pre-tokenizer."""
        if self.pattern is not None:
            first = pre_tokenizers.Split(Regex(self.pattern), "isolated")
            return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]) if self.digits else gpt2


# The names are those of src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, and so are the last two columns
# but for the architectures; characters are composed where the tokenizer.json of the same models does so.
SPLITS = (
    Split(("default", "gpt-2", "phi-2", "olmo", "mellum"), architectures=("phi2", "olmo")),
    Split(("smollm", "starcoder", "refact", "command-r"), digits=True),
    Split(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"),
        CL100K,
        whole_words=True,
        bos=True,
        architectures=("llama",),
    ),
    Split(("dbrx", "smaug-bpe"), CL100K, architectures=("phi3", "olmo2", "smollm3")),
    Split(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN, nfc=True, architectures=("qwen2", "qwen3")),
    Split(("stablelm2",), QWEN),
    Split(("tekken",), TEKKEN, whole_words=True, bos=True, architectures=("mistral3",)),
    Split(("gpt-4o", "llama4"), O200K),
)
