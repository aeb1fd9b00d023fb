"""Checks of a tokenizer: texts of ten kinds to ids and back."""

from collections.abc import Iterator

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.nn.config import Config
from jaxlin.report.check.results import Line, counted
from jaxlin.tokenizer import Tokenizer

TEXTS = {
    "words": "The quick brown fox jumps over the lazy dog.",
    "spaces": "  two before,  two between,   three",
    "line breaks": "one\n\ntwo\n\tthree\n    four\n",
    "numbers": "3.14159, 2718281828, 1,000,000 and 2^64",
    "Latin accents": "Ça a déjà coûté 5 € à Zürich, señor Łukasz",
    "Greek and Cyrillic": "Αλφάβητο, Привет, мир",
    "Hebrew and Arabic": "שלום, مرحبا بالعالم",
    "Chinese, Japanese, Korean": "你好,世界。こんにちは 안녕하세요",
    "emoji": "👍🏽 👩‍👩‍👧 🇫🇷",
    "code": 'def f(x):\n    return {"a": x**2}  # [0, 1]\n',
}
"""A text of each kind; accents are parts of their letters (NFC), because some tokenizers compose them."""


def tokenizer_lines(tokenizer: Tokenizer, config: Config) -> Iterator[Line]:
    """Whether texts come back from their ids, whether the model has these ids, and whether BOS is put in once."""
    ids: list[int] = []
    changed: list[str] = []
    for kind, text in TEXTS.items():
        try:
            encoded = tokenizer.encode(text, prepend_bos=False)
            ids += encoded
            if (back := tokenizer.decode(encoded)) != text:
                changed.append(f"{kind}: {quoted(text, 50)} comes back as {quoted(back, 50)}")
        except TokenizerError as error:
            changed.append(f"{kind}: {error}"[:150])
    count = len(TEXTS)
    note = "; ".join(changed[:2]) or "kinds of text that come back unchanged"
    yield counted("text to ids and back", not changed, count - len(changed), count, above=True, note=note)
    more, last = tokenizer.vocab_size - config.vocab_size, config.vocab_size - 1
    note = "largest id in those texts"
    note += f"; the tokenizer has {more} ids without embeddings" if more > 0 else ""
    yield counted("ids within the vocabulary", max(ids, default=0) <= last, max(ids, default=0), last, note=note)
    begun = tokenizer.encode(TEXTS["words"])
    times = next((i for i, token in enumerate(begun) if token != tokenizer.bos_id), len(begun))
    if tokenizer.bos_id is None:
        note = "the tokenizer has no BOS"
    else:
        note = f"{quoted(tokenizer.token(tokenizer.bos_id), 40)} {'begins' if times else 'does not begin'} a text"
    yield counted("BOS at most once", times <= 1, times, 1, note=note)
