"""`attribute_batch`: the attributions of several prompts of unequal lengths."""

from collections.abc import Sequence
from typing import Any

from jaxlin.activations.batches import Batch, each_or_all, map_prompts
from jaxlin.attribution.logit import attribute
from jaxlin.attribution.result import Attribution
from jaxlin.common.arguments import checked
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sites import position_in
from jaxlin.tokenizer import Tokenizer


@checked
def attribute_batch(
    model: Decoder,
    prompts: Sequence[Any],
    target: Any,
    *,
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
    **options: Any,
) -> Batch[Attribution]:
    """`jaxlin.attribute` of each of several prompts, padded to few lengths, so that few programs are compiled.

    Args:
        model: any decoder.
        prompts: input embeddings, token ids or, with a `tokenizer`, texts, of any lengths.
        target: a target as of `attribute` for all prompts, or a list of one for each.
        position: the position of the logit in each prompt; a negative one counts from its last token.
        tokenizer: the model's tokenizer, which encodes texts and words.
        progress: show a progress bar if it takes more than a second.
        options: rule, neurons, sources and remat, as of `attribute`.

    Raises:
        PromptError: no prompts, one that is invalid, or a text without a tokenizer.
        JaxlinError: another number of targets than of prompts; and as `attribute`.
        SiteError, TokenizerError: as `attribute`.
    """
    targets = each_or_all(target, len(prompts), "Targets")

    def attributed(padded: Any, tokens: int, index: int) -> Attribution:
        at = position_in(tokens, position)
        result = attribute(model, padded, targets[index], position=at, tokenizer=tokenizer, **options)
        sources = result.sources if result.sources is None else result.sources[..., :tokens]
        return result.replaced(tokens=result.tokens[:tokens], sources=sources)

    return map_prompts(model, prompts, attributed, tokenizer=tokenizer, progress=progress)
