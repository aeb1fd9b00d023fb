"""`read_batch`: a lens, read at several prompts of unequal lengths."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlin.activations.batches import Batch, map_prompts
from jaxlin.common.arguments import checked
from jaxlin.lens.jacobian_lens import JacobianLens
from jaxlin.lens.reading import LensReading, read
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.sites import position_in
from jaxlin.tokenizer import Tokenizer


@checked
def read_batch(
    model: Decoder,
    prompts: Sequence[Any],
    lens: JacobianLens | None = None,
    *,
    positions: int | Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
    **options: Any,
) -> Batch[LensReading]:
    """`read` of each of several prompts, padded to few lengths, so that few programs are compiled.

    Args:
        model: any decoder.
        prompts: input embeddings, token ids or, with a `tokenizer`, texts, of any lengths.
        lens: a lens of this model; the logit lens by default.
        positions: the positions to read in each prompt; negative ones count from its last token. All by default.
        tokenizer: the model's tokenizer, which encodes texts.
        progress: show a progress bar if it takes more than a second.
        options: k and tokens, as of `read`.

    Raises:
        PromptError: no prompts, one that is invalid, or a text without a tokenizer.
        SiteError, JaxlinError: as `read`.
    """

    def reading(padded: Any, tokens: int, index: int) -> LensReading:
        if positions is not None:
            listed: Any = np.atleast_1d(np.asarray(positions)).tolist()
            return read(model, padded, lens, positions=[position_in(tokens, each) for each in listed], **options)
        result = read(model, padded, lens, **options)
        fields = {name: getattr(result, name)[:, :tokens] for name in ("ids", "logits", "ranks", "probabilities")}
        return result.replaced(positions=result.positions[:tokens], **fields)

    return map_prompts(model, prompts, reading, tokenizer=tokenizer, progress=progress)
