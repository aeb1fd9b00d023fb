"""`local_map_batch`: the local linear maps of several prompts of unequal lengths."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxlin.activations.batches import Batch, map_prompts
from jaxlin.common.arguments import checked
from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sites import position_in
from jaxlin.tokenizer import Tokenizer


@checked
def local_map_batch(
    model: Decoder,
    prompts: Sequence[Any],
    *,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
    **options: Any,
) -> Batch[LocalMap]:
    """`jaxlin.local_map` at each of several prompts, padded to few lengths while their factors are recorded.

    Args:
        model: any decoder.
        prompts: input embeddings, token ids or, with a `tokenizer`, texts, of any lengths.
        position: the position of the output in each prompt; a negative one counts from its last token.
        tokenizer: the model's tokenizer, which encodes texts.
        progress: show a progress bar if it takes more than a second.
        options: source, target, rule and remat, as of `local_map`.

    Raises:
        PromptError: no prompts, one that is invalid, or a text without a tokenizer.
        SiteError, JaxlinError: as `local_map`.
    """

    def mapped(padded: Any, tokens: int, index: int) -> LocalMap:
        at = position_in(tokens, position)
        lmap = local_map(model, padded, position=at, **options)
        length = min(lmap.frozen.tokens, tokens)
        frozen, is_last = lmap.frozen.first(length), at == length - 1
        return dataclasses.replace(lmap, x=lmap.x[:tokens], frozen=frozen, is_last_position=is_last)

    return map_prompts(model, prompts, mapped, tokenizer=tokenizer, progress=progress)
