"""The merges of a SentencePiece vocabulary, which holds scores in their place."""

from collections.abc import Iterable

from jaxlin.common.errors import TokenizerError

_MOST_SPLIT = 2**28
"""What the squares of the lengths of a SentencePiece vocabulary's tokens may add up to: each is tried in two parts at
every character, and a file could be made to take all memory. 262,144 tokens of 16 characters, SentencePiece's longest
unless told, come to a quarter of it."""


def pairs_by_score(vocabulary: Iterable[str], scores: list[float], source: str) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE: of all adjacent pieces, the pair whose union scores highest is merged first.

    Raises:
        TokenizerError: pieces that are too long to try their parts.
    """
    known = frozenset(vocabulary)
    if (work := sum(len(token) ** 2 for token in known)) > _MOST_SPLIT:
        raise TokenizerError(
            f"{source}: expected tokens whose squared lengths add up to at most {_MOST_SPLIT}; found {work}."
        )
    splits = [
        (-score, cut, len(token) - cut, token[:cut], token[cut:])
        for token, score in zip(vocabulary, scores, strict=True)
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    # Among equal scores longer left parts come first, as transformers sorts them.
    splits.sort(key=lambda pair: (pair[0], -pair[1], -pair[2]))
    return [(left, right) for *_, left, right in splits]
