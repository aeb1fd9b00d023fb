"""Tokens that are a part of a character, written so that they can be told apart."""

import re

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def with_bytes(text: str, token: str | None) -> str:
    r"""The text of a token in which bytes that are no whole character are written as ``<0xF0>``.

    Args:
        text: what the token decodes to, with U+FFFD for such bytes.
        token: the token as the vocabulary spells it: one byte as ``<0xF0>``, or, in byte-level BPE, a character for
            each byte.
    """
    if token is None:
        return text
    if _BYTE_TOKEN.fullmatch(token):
        return token
    if not all(character in _BYTES for character in token):
        return text
    raw = bytes(_BYTES[character] for character in token)
    # The bytes that `decode` passes over come as lone surrogates, U+DC80 for the byte 80 and so on.
    return "".join(
        f"<0x{ord(each) - 0xDC00:02X}>" if "\udc80" <= each <= "\udcff" else each
        for each in raw.decode("utf-8", "surrogateescape")
    )


def spelled(word: bytes) -> str:
    """Bytes as the vocabulary of byte-level BPE spells them."""
    return "".join(map(_CHARACTERS.__getitem__, word))


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: the printable bytes of Latin-1 as they are, the other 68 as the characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()
_CHARACTERS = {byte: character for character, byte in _BYTES.items()}
