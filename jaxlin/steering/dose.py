r"""Dose curves: what an edit does to the texts of a model as its strength grows, and what it costs."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.nn.arguments import check_model, check_tokenizer
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import at_least_float32
from jaxlin.steering.edits import Edit, SteeringError, Where, checked, schedule_at, whole
from jaxlin.steering.generation import Generation, Prompt, generate_batch, rounded, spans
from jaxlin.tokenizer import Tokenizer, required


@dataclass(frozen=True, eq=False)
class DoseCurve:
    r"""What an edit does at each of ``s`` strengths, over the same ``n`` prompts.

    All but the texts are means over the prompts. $p_s$ and $p_0$ are the edited and the untouched model's distributions
    of the next token after the same prefix, the prompt and the edited model's own text so far; what is measured of them
    is the mean over that text.

    Attributes:
        edit: the name of the edit.
        site: where it is made.
        where: at which positions.
        target: the target word.
        strengths: the strengths, ``[s]``.
        target_rate: the share of texts that hold the target as a word of its own, in upper or lower case, ``[s]``.
        target_probability: $p_s$ of the target's token, ``[s]``.
        kl: $D_\text{KL}(p_s \,\Vert\, p_0)$, nats, ``[s]``.
        surprise: $-\ln p_0$ of the text's tokens, nats: how odd the untouched model finds it, ``[s]``.
        repetition: the share of a text's 3-grams of tokens that stood in it before, ``[s]``.
        prompts: the prompts as texts, ``n`` of them.
        texts: the new text after each prompt, at each strength.
    """

    edit: str
    site: Any
    where: Where | str
    target: str
    strengths: Float[np.ndarray, " s"]
    target_rate: Float[np.ndarray, " s"]
    target_probability: Float[np.ndarray, " s"]
    kl: Float[np.ndarray, " s"]
    surprise: Float[np.ndarray, " s"]
    repetition: Float[np.ndarray, " s"]
    prompts: list[str]
    texts: list[list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return {key: a.tolist() if isinstance(a, np.ndarray) else a for key, a in asdict(self).items()}


def dose_curve(
    model: Decoder,
    tokenizer: Tokenizer | None,
    edit: Edit,
    prompts: Sequence[Prompt],
    target: str | int,
    strengths: Sequence[float],
    *,
    max_new_tokens: int = 32,
    **options: Any,
) -> DoseCurve:
    """Generate after every prompt at every strength of `edit`, and measure.

    Args:
        model: any decoder.
        tokenizer: its tokenizer.
        edit: what is done; its own strength is not used.
        prompts: texts or token ids.
        target: a word, which with the space before it must be one token; or the id of a token that is a word.
        strengths: the strengths; 0 among them gives the untouched model's row.
        max_new_tokens: how long the texts are at most.
        options: as for `jaxlin.generate_batch`: temperature, top_k, top_p, seed, stop_token_ids.

    Raises:
        TokenizerError: a target that is not one token, or an id of no word.
        SteeringError: no prompts or strengths, or a strength that is not finite; or as for `generate_batch`.
        PromptError, SamplingError, SiteError: as for `generate_batch`.
    """
    check_model(model)
    check_tokenizer(tokenizer)
    doses = np.asarray(strengths, float)
    if not len(prompts) or doses.ndim != 1 or not doses.size or not np.isfinite(doses).all():
        raise SteeringError(
            f"Dose curve: expected one prompt or more and finite strengths; found {len(prompts)} and "
            f"{quoted(strengths)}."
        )
    tokenizer = required(tokenizer, "A dose curve")
    word, token = _target(tokenizer, target)
    rows, texts = [], []
    for dose in doses.tolist():
        edits = [edit.at_strength(dose)] if isinstance(edit, Edit) else [edit]
        found = generate_batch(model, tokenizer, prompts, max_new_tokens, edits=edits, return_logits=True, **options)
        rows.append(np.mean([_measured(model, generation, word, token) for generation in found], axis=0))
        texts.append([generation.text for generation in found])
    rate, probability, kl, surprise, repeated = np.stack(rows, axis=1)
    return DoseCurve(
        edit=type(edit).__name__,
        site=edit.site,
        where=edit.where,
        target=word,
        strengths=doses,
        target_rate=rate,
        target_probability=probability,
        kl=kl,
        surprise=surprise,
        repetition=repeated,
        prompts=[prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts],
        texts=texts,
    )


def _target(tokenizer: Tokenizer, target: str | int) -> tuple[str, int]:
    if isinstance(target, str):
        return target.strip(), tokenizer.to_single_token(f" {target.strip()}")
    word = tokenizer.token(target).strip() if 0 <= target < tokenizer.vocab_size else ""
    if not word:
        raise TokenizerError(f"Target: expected the id of a word; found {target}.")
    return word, target


def _measured(model: Decoder, generation: Generation, word: str, token: int) -> tuple[float, ...]:
    """Target rate and probability, KL, surprise and repetition of one text."""
    assert generation.logits is not None
    steered = _log_probabilities(generation.logits)
    plain = _log_probabilities(continuation_logits(model, generation.prompt, generation.tokens))
    kl = np.mean(np.sum(np.exp(steered) * (steered - plain), axis=-1))
    surprise = -np.mean(plain[np.arange(len(plain)), generation.tokens])
    hit = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", generation.text, re.IGNORECASE) is not None
    probability = np.mean(np.exp(steered[:, token]))
    return float(hit), float(probability), float(kl), float(surprise), repetition(generation.tokens)


def _log_probabilities(logits: Array | np.ndarray) -> Float[np.ndarray, "n vocab"]:
    wide = np.asarray(logits, np.float64)  # rounded to float32, a divergence of nearly nothing may come out negative
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.sum(np.exp(wide), axis=-1, keepdims=True))


def repetition(tokens: Sequence[int], n: int = 3) -> float:
    """The share of the `n`-grams of `tokens` that stood before: 0 if each is new, near 1 in a loop."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def continuation_logits(
    model: Decoder, prompt: Sequence[int], tokens: Sequence[int], edits: Sequence[Edit] = ()
) -> Float[Array, "n vocab"]:
    """The logits that each of `tokens` would be chosen by after `prompt` and those before it: one pass, no cache.

    Where the rotary frequencies depend on the length of the text, it is one pass for each set of them.
    """
    ids = [*prompt, *tokens]
    x = model.embed(ids)
    x = jnp.pad(x, ((0, rounded(len(ids)) - len(ids)), (0, 0)))  # texts of about one length share a program
    edits, rows = checked(model, edits), []
    for start, stop in spans(model, len(prompt), len(ids)):
        outputs = whole(model, x, schedule_at(model, start), edits, len(prompt) - 1)
        rows.append(model.unembed(outputs[start - 1 : stop - 1]))
    return at_least_float32(jnp.concatenate(rows))
