"""Tokens whose bytes are only a part of a character, written so that they can be told apart."""

import re

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def with_bytes(text: str, token: str | None) -> str:
    r"""The text of a token, in which bytes that are only a part of a character are written as ``<0xF0>``.

    Args:
        text: the text that the token decodes to, with U+FFFD for such bytes.
        token: the token as the vocabulary spells it: a single byte as ``<0xF0>``, or, in byte-level BPE, each byte as a
            character.
    """
    if token is None:
        return text
    if _BYTE_TOKEN.fullmatch(token):
        return token
    if not all(character in _BYTES for character in token):
        return text
    raw = bytes(_BYTES[character] for character in token)
    # Bytes that are no UTF-8 decode to lone surrogates, the byte 80 to U+DC80 and so on.
    return "".join(
        f"<0x{ord(each) - 0xDC00:02X}>" if "\udc80" <= each <= "\udcff" else each
        for each in raw.decode("utf-8", "surrogateescape")
    )


def spell_bytes(word: bytes) -> str:
    """Bytes as byte-level BPE spells them, each as a character."""
    return "".join(map(_CHARACTERS.__getitem__, word))


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: the printable bytes of Latin-1 stand for themselves, U+0100 and up for the other 68."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()
_CHARACTERS = {byte: character for character, byte in _BYTES.items()}
