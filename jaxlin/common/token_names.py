"""How tokens are shown to people: the same way in a terminal, on a page, in a plot and in a notebook.

A token can be a space, a part of a character, a mark that combines with its neighbour, or the same word as another
token of the prompt. `token_names` gives the tokens of a prompt names that can be told apart.
"""

import re
import unicodedata
from collections.abc import Sequence

BYTES = re.compile(r"((?:<0x[89A-F][0-9A-F]>)+)")
"""Bytes that are a part of a character, as `jaxlin.tokenizer.Tokenizer.token` writes them."""

LEFT_TO_RIGHT_MARK = "\N{LEFT-TO-RIGHT MARK}"

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_LENGTHS = ((0xC2, 0xDF, 2), (0xE0, 0xEF, 3), (0xF0, 0xF4, 4))
"""The first bytes of characters of two to four bytes in UTF-8."""


def visible(token: str) -> str:
    """A token with each space as a middle dot, and each character that does not print as a sign that does.

    A mark that combines with the character before it stands on a dotted circle.
    """
    escaped = token.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    escaped = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in escaped).replace(" ", "·")
    return f"\N{DOTTED CIRCLE}{escaped}" if escaped and unicodedata.combining(escaped[0]) else escaped


def token_names(tokens: Sequence[str]) -> list[str]:
    """The names of the tokens of a prompt, one each, by which a reader can tell them apart.

    They are the tokens as `visible` shows them. Of a character that is several tokens the first has the character and
    its own bytes, the others have their bytes: ``🌉⟨F0 9F⟩ ⟨8C⟩ ⟨89⟩``. A name that occurs more than once has the
    position of the token as a subscript.

    Args:
        tokens: the text of each token, with bytes that are only a part of a character written as ``<0xF0>``, as
            `jaxlin.tokenizer.Tokenizer.to_str_tokens` gives them.
    """
    names = ["".join(parts).replace("⟩⟨", " ") for parts in _shown_parts(tokens)]
    return [
        f"{name}{str(position).translate(_SUBSCRIPTS)}" if names.count(name) > 1 else name
        for position, name in enumerate(names)
    ]


def joined(tokens: Sequence[str]) -> str:
    """The text of some tokens together, in which the bytes of a character are the character again."""

    def text(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("<0x", "").replace(">", "")).decode("utf-8", "replace")

    return BYTES.sub(text, "".join(tokens))


def split_text(tokens: Sequence[str], position: int) -> tuple[str, str]:
    """The text of some tokens, up to `position` and after it; a character that is not complete there comes after."""
    text, before = joined(tokens), joined(tokens[: position + 1])
    if not text.startswith(before):
        before = before.rstrip("\N{REPLACEMENT CHARACTER}")
    return before, text[len(before) :]


def left_to_right(name: str) -> str:
    """`name`, followed by a mark if it is written from right to left, so that what follows it on a line is not."""
    is_right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in name)
    return f"{name}{LEFT_TO_RIGHT_MARK}" if is_right_to_left else name


def _shown_parts(tokens: Sequence[str]) -> list[list[str]]:
    """What is shown of each token: its text, and for bytes the character that begins there and the bytes."""
    pieces: list[list[str]] = [[] for _ in tokens]
    run: list[tuple[int, int]] = []  # bytes that follow each other, each with the token that it belongs to

    def end_run() -> None:
        for character, piece in _characters(run):
            for place, token in enumerate(dict.fromkeys(token for token, _ in piece)):
                numbers = " ".join(f"{byte:02X}" for owner, byte in piece if owner == token)
                is_complete = len({owner for owner, _ in piece}) == 1 and character
                pieces[token].append(
                    visible(character) if is_complete else f"{'' if place else visible(character)}⟨{numbers}⟩"
                )
        run.clear()

    for index, token in enumerate(tokens):
        for number, part in enumerate(BYTES.split(token)):
            if number % 2:
                run.extend((index, byte) for byte in bytes.fromhex(part.replace("<0x", "").replace(">", "")))
            elif part:
                end_run()
                pieces[index].append(visible(part))
    end_run()
    return pieces


def _characters(run: list[tuple[int, int]]) -> list[tuple[str, list[tuple[int, int]]]]:
    """The bytes of each character of `run`, after the character; it is empty for a byte that belongs to none."""
    characters, start = [], 0
    while start < len(run):
        first = run[start][1]
        length = next((size for low, high, size in _LENGTHS if low <= first <= high), 1)
        piece = run[start : start + length]
        text = bytes(byte for _, byte in piece).decode("utf-8", "ignore") if length > 1 else ""
        if len(text) != 1 or len(piece) < length:
            text, piece = "", run[start : start + 1]
        characters.append((text, piece))
        start += len(piece)
    return characters
