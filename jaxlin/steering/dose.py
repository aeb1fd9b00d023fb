r"""Dose curves: the effect of an edit on generated texts as its strength grows, and its side effects."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin import plots
from jaxlin.activations import Edit, SteeringError, Where, check_edits
from jaxlin.common.arguments import checked
from jaxlin.common.errors import TokenizerError
from jaxlin.common.printable import quoted
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import at_least_float32
from jaxlin.nn.prompt import padded_prompt
from jaxlin.results import Result, html, traced_to
from jaxlin.steering.edited_model import full_pass, schedule_at
from jaxlin.steering.generation import Generation, Prompt, frequency_spans, generate_batch, round_up
from jaxlin.tokenizer import Tokenizer, require_tokenizer


@dataclass(frozen=True, eq=False)
class DoseCurve(Result):
    r"""The effect of an edit at each of ``s`` strengths, on the same ``n`` prompts.

    The numbers are means over the prompts, and those of distributions also over the positions of the new text. $p_s$
    and $p_0$ are the distributions of the next token by the edited and by the ordinary model, after the same prefix:
    the prompt and the text that the edited model has generated so far.

    Attributes:
        edit: the name of the edit's class.
        site: the site of the edit.
        where: the positions that it applies to.
        target: the target word.
        strengths: the strengths, ``[s]``.
        target_rate: the share of texts in which the target is a whole word, in upper or lower case, ``[s]``.
        target_probability: $p_s$ of the target's token, ``[s]``.
        kl: $D_\text{KL}(p_s \,\Vert\, p_0)$ in nats, ``[s]``.
        surprise: $-\ln p_0$ of the new tokens in nats, ``[s]``: how unlikely the text is to the ordinary model.
        repetition: the share of 3-grams of tokens in a text that occurred in it before, ``[s]``.
        prompts: the prompts as text, ``n`` of them.
        texts: the new text after each prompt, at each strength.
    """

    AXES: ClassVar = dict.fromkeys(
        ("strengths", "target_rate", "target_probability", "kl", "surprise", "repetition"), ("dose",)
    )
    LABELS: ClassVar = {"dose": ("strength", "strengths")}

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

    def tables(self) -> list[dict[str, Any]]:
        """A row for each strength and prompt, with the new text and the means over the prompts at the strength."""
        means, n = super().tables()[0], len(self.prompts)
        texts = {"prompt": self.prompts * len(self.strengths), "text": [text for row in self.texts for text in row]}
        return [
            {
                "strength": np.repeat(self.strengths, n),
                **texts,
                **{k: np.repeat(v, n) for k, v in means.items() if k != "strength"},
            }
        ]

    def _draw(self, ax: Any) -> None:
        """The shares as curves over the strength, and divergence and surprise on an axis of their own."""
        shares = {
            f"texts with {self.target}": self.target_rate,
            f"probability of {self.target}": self.target_probability,
            "repetition": self.repetition,
        }
        plots.curves(ax, self.strengths, shares)
        plots.write(ax, title=f"{self.edit} at {_place(self.site)}", xlabel="strength", ylabel="share")
        other = ax.twinx()
        other.plot(self.strengths, self.kl, color="0.4", linestyle="--", linewidth=1.0, label="KL divergence")
        other.plot(self.strengths, self.surprise, color="0.4", linestyle=":", linewidth=1.0, label="surprise")
        other.tick_params(labelsize=8)
        plots.write(other, ylabel="nats (dashed: KL divergence; dotted: surprise)")

    def _repr_html_(self) -> str:
        """A row for each strength, and the texts below it."""
        table = self.tables()[0]
        means = Result.tables(self)[0]
        texts = {name: table[name] for name in ("strength", "prompt", "text")}
        return html.heading(self) + html.rows(self, means) + html.rows(self, texts)


def _place(site: Any) -> str:
    return " ".join(map(str, site)) if isinstance(site, list | tuple) else str(site)


@checked
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
        edit: the edit; its own strength is not used.
        prompts: texts or token ids.
        target: a word, which must be one token with a space before it; or the id of a token that is a word.
        strengths: the strengths. At 0 the ordinary model is measured.
        max_new_tokens: the largest number of new tokens for each prompt.
        options: options of `jaxlin.generate_batch`: temperature, top_k, top_p, seed, stop_token_ids.

    Raises:
        TokenizerError: a target that is not one token, or an id that is not a word.
        SteeringError: no prompts, no strengths, or a strength that is not finite; and as `generate_batch`.
        PromptError, SamplingError, SiteError: as `generate_batch`.
    """
    doses = np.asarray(strengths, float)
    if not len(prompts) or doses.ndim != 1 or not doses.size or not np.isfinite(doses).all():
        raise SteeringError(
            f"Dose curve: expected one prompt or more and finite strengths; found {len(prompts)} and "
            f"{quoted(strengths)}."
        )
    tokenizer = require_tokenizer(tokenizer, "A dose curve")
    word, token = _target(tokenizer, target)
    rows, texts = [], []
    for dose in doses.tolist():
        edits = [edit.at_strength(dose)] if isinstance(edit, Edit) else [edit]  # generate_batch refuses other objects
        batch = generate_batch(model, tokenizer, prompts, max_new_tokens, edits=edits, return_logits=True, **options)
        rows.append(np.mean([_measurements(model, generation, word, token) for generation in batch], axis=0))
        texts.append([generation.text for generation in batch])
    rate, probability, kl, surprise, repeated = np.stack(rows, axis=1)
    curve = DoseCurve(
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
    return traced_to(curve, model, tokenizer=tokenizer, max_new_tokens=max_new_tokens, **options)


def _target(tokenizer: Tokenizer, target: str | int) -> tuple[str, int]:
    """The target word and its token.

    A new word of a text has a space before it, so only that spelling is meant, whichever is likelier after a prompt.
    """
    if isinstance(target, str):
        return target.strip(), tokenizer.to_single_token(f" {target.strip()}")
    word = tokenizer.token(target).strip() if 0 <= target < tokenizer.vocab_size else ""
    if not word:
        raise TokenizerError(f"Target: expected the id of a word; found {target}.")
    return word, target


def _measurements(model: Decoder, generation: Generation, word: str, token: int) -> tuple[float, ...]:
    """Target rate and probability, KL divergence, surprise and repetition of one text."""
    # Imported here because scipy.special takes a quarter of a second to import, and few users need it.
    from scipy.special import log_softmax

    assert generation.logits is not None
    ordinary_logits = continuation_logits(model, generation.prompt, generation.tokens)
    # In float64, because a divergence near zero could round to a negative number in float32.
    edited, ordinary = (
        log_softmax(np.asarray(logits, np.float64), axis=-1) for logits in (generation.logits, ordinary_logits)
    )
    kl = np.mean(np.sum(np.exp(edited) * (edited - ordinary), axis=-1))
    surprise = -np.mean(ordinary[np.arange(len(ordinary)), generation.tokens])
    is_hit = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", generation.text, re.IGNORECASE) is not None
    probability = np.mean(np.exp(edited[:, token]))
    return float(is_hit), float(probability), float(kl), float(surprise), repetition(generation.tokens)


def repetition(tokens: Sequence[int], n: int = 3) -> float:
    """The share of the `n`-grams of `tokens` that occurred before: 0 if all are new, near 1 in a loop."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def continuation_logits(
    model: Decoder, prompt: Sequence[int], tokens: Sequence[int], edits: Sequence[Edit] = ()
) -> Float[Array, "n vocab"]:
    """The logits of each of `tokens` after `prompt` and the tokens before it, without a cache.

    It takes one pass, or where the rotary frequencies depend on the length of the text, one for each set of them.
    """
    ids = [*prompt, *tokens]
    x = model.check_embeddings(model.embed(ids))
    x = padded_prompt(x, round_up(len(ids)))  # texts of about the same length share a program
    checked, rows = check_edits(model, edits), []
    for start, stop in frequency_spans(model, len(prompt), len(ids)):
        outputs = full_pass(model, x, schedule_at(model, start), checked, len(prompt) - 1)
        rows.append(model.unembed(outputs[start - 1 : stop - 1]))
    return at_least_float32(jnp.concatenate(rows))
