r"""Generation with a cache of keys and values: one pass for the prompt, then one compiled step a token.

Sequences are padded on the right, so that one program serves prompts of any length up to a multiple of `ROUND`: what
stands past a text's end is never attended to, and is overwritten as the text grows. A batch is a `jax.vmap` of a step.

A rope whose frequencies depend on the length of the text turns *every* token anew when they change, and with that the
keys and values of all layers but the first: a cache from before is wrong then. So frequencies are asked for at each
length, and where they change, the whole text is passed again: once with LongRoPE, when the text outgrows the trained
length (transformers drops Phi-3's cache there too); at every token with dynamic NTK scaling past it (transformers keeps
the old keys there, and its cached and uncached outputs differ).
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.nn.arguments import check_model, check_tokenizer
from jaxlin.nn.decoder import Decoder, PromptError
from jaxlin.nn.layers import at_least_float32
from jaxlin.nn.schedule import Schedule
from jaxlin.steering.edits import Edit, Past, checked, forward, no_past, schedule_at
from jaxlin.steering.samplers import Sampling, SamplingError, chosen, sampling_of
from jaxlin.tokenizer import Tokenizer, required

ROUND = 16
"""Tokens and slots are rounded up to a multiple of this, so that prompts of about one length share a program."""

Prompt = str | Sequence[int]
"""A text, or its token ids."""


@dataclass(frozen=True, eq=False)
class Generation:
    """A continued prompt.

    Attributes:
        prompt: the ids of the prompt.
        tokens: the new ids, with the one that ended the text if one did.
        stopped: whether one did.
        text: the new text, without special tokens.
        logits: what each new token was chosen by, ``[n, vocab]``, before temperature; None unless asked for.
    """

    prompt: list[int]
    tokens: list[int]
    stopped: bool
    text: str
    logits: Float[np.ndarray, "n vocab"] | None

    def __eq__(self, other: object) -> bool:
        """Whether all of both is the same, number by number."""
        if not isinstance(other, Generation):
            return NotImplemented
        one, two = ((each.prompt, each.tokens, each.stopped, each.text) for each in (self, other))
        if self.logits is None or other.logits is None:
            return one == two and self.logits is other.logits
        return one == two and np.array_equal(self.logits, other.logits)


def generate(
    model: Decoder, tokenizer: Tokenizer | None, prompt: Prompt, max_new_tokens: int = 64, **options: Any
) -> Generation:
    """Continue one prompt: `generate_batch` for a list of one, with the same options."""
    return generate_batch(model, tokenizer, [prompt], max_new_tokens, **options)[0]


def generate_batch(
    model: Decoder,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token_ids: Sequence[int] | None = None,
    edits: Sequence[Any] = (),
    return_logits: bool = False,
) -> list[Generation]:
    """Continue prompts, each by itself, side by side; the tokens are those of the uncached model.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        tokenizer: its tokenizer.
        prompts: texts or token ids.
        max_new_tokens: how many tokens to add at most.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_k: as in `Sampling`; all unless given.
        top_p: as in `Sampling`; all unless given.
        seed: of the draw. A prompt's draws depend on its index in the list and on nothing else in it.
        stop_token_ids: the ids that end a text; the tokenizer's `stop_ids` unless given.
        edits: what is done to the residual stream on the way: see `jaxlin.steering`.
        return_logits: whether each `Generation` has the logits its tokens were drawn from.

    Raises:
        PromptError: an empty prompt, an id outside the vocabulary, or a text that would outgrow the model's context.
        SamplingError: no such number of tokens, temperature, top-k or top-p.
        SiteError: an edit at a site that the model does not have.
        SteeringError: what is no edit, or one for a residual stream of another width.
    """
    check_model(model)
    check_tokenizer(tokenizer)
    if isinstance(prompts, str):
        raise PromptError("Prompts: expected a list of them; found one text. Put it in a list, or call generate.")
    if max_new_tokens < 1:
        raise SamplingError(f"New tokens: expected 1 or more; found {max_new_tokens}.")
    sampling = sampling_of(model.config.vocab_size, temperature, top_k, top_p)
    tokenizer = required(tokenizer, "A generation")
    edits, given = checked(model, edits), [prompt_ids(model, tokenizer, prompt, max_new_tokens) for prompt in prompts]
    ends = list(tokenizer.stop_ids if stop_token_ids is None else stop_token_ids)
    keys = [jax.random.fold_in(jax.random.key(seed), index) for index in range(len(given))]
    run = functools.partial(_continued, model, max_new_tokens, sampling, ends, edits, return_logits)
    # Prompts of different lengths would meet a change of frequencies at different steps.
    shortest, longest = (extreme(map(len, given), default=1) for extreme in (min, max))
    together = len(list(spans(model, shortest, longest + max_new_tokens))) == 1
    groups = [range(len(given))] if given and together else [range(i, i + 1) for i in range(len(given))]
    found = [row for group in groups for row in run([given[i] for i in group], jnp.stack([keys[i] for i in group]))]
    return [
        Generation(ids, new, bool(new) and new[-1] in ends, _text(tokenizer, ids, new), kept)
        for ids, (new, kept) in zip(given, found, strict=True)
    ]


def prompt_ids(model: Decoder, tokenizer: Tokenizer, prompt: Prompt, max_new_tokens: int) -> list[int]:
    """The ids of a prompt that leaves room for as many new tokens.

    Raises:
        PromptError: see `generate_batch`.
    """
    given = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    model.embed(given)  # refuses what is no prompt
    ids = [int(i) for i in given]
    context = model.config.max_position_embeddings
    if context is not None and len(ids) + max_new_tokens > context:
        raise PromptError(
            f"Prompt and continuation: expected at most {context} tokens, this model's context; found {len(ids)} and "
            f"{max_new_tokens} new ones. Ask for at most {context - len(ids)} new tokens, or shorten the prompt."
        )
    return ids


def _text(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    # Some decoders strip the space that begins a text, which the prompt keeps in its place.
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def _frequencies(model: Decoder, tokens: int) -> tuple[Any, ...]:
    found = (rope.frequencies(tokens) for rope in dict.fromkeys(model.config.ropes))
    return tuple((inv_freq.tobytes(), scale) for inv_freq, scale in found)


def spans(model: Decoder, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The lengths from `start` to before `stop`, in spans of one set of rotary frequencies."""
    while start < stop:
        here, end = _frequencies(model, start), start + 1
        while end < stop and _frequencies(model, end) == here:
            end += 1
        yield start, end
        start = end


def rounded(tokens: int) -> int:
    """`tokens`, up to a multiple of `ROUND`."""
    return -(-tokens // ROUND) * ROUND


class _Texts(NamedTuple):
    """Texts as they grow, ``b`` of them.

    Attributes:
        ids: padded on the right.
        lengths: how long each is.
        done: whether a stop token has ended it.
        logits: those kept, ``[b, n, vocab]``; n is 0 if none are.
    """

    ids: Int[Array, "b s"]
    lengths: Int[Array, " b"]
    done: Array
    logits: Float[Array, "b n vocab"]


def _continued(
    model: Decoder,
    max_new_tokens: int,
    sampling: Sampling | None,
    stop: list[int],
    edits: tuple[Edit, ...],
    keep: bool,
    prompts: list[list[int]],
    keys: Array,
) -> list[tuple[list[int], np.ndarray | None]]:
    """The new ids of each prompt, and their logits; of one prompt, or of some whose frequencies never change."""
    lengths = [len(ids) for ids in prompts]
    slots, wide = rounded(max(lengths) + max_new_tokens), jnp.promote_types(model.dtype, jnp.float32)
    padded = np.zeros((len(prompts), slots), np.int32)
    for row, ids in zip(padded, prompts, strict=True):
        row[: len(ids)] = ids
    kept = jnp.zeros((len(prompts), max_new_tokens if keep else 0, model.config.vocab_size), wide)
    starts = jnp.asarray(lengths)
    texts, ends = _Texts(jnp.asarray(padded), starts, jnp.zeros(len(prompts), bool), kept), jnp.asarray(stop, int)
    for start, end in spans(model, lengths[0], lengths[0] + max_new_tokens):
        if bool(texts.done.all()):
            break
        prefill = rounded(max(lengths) + start - lengths[0])
        schedule = schedule_at(model, start)
        texts = _grow(model, schedule, texts, starts, end - start, sampling, keys, ends, edits, prefill=prefill)
    counts = [int(end) - start for end, start in zip(texts.lengths, lengths, strict=True)]
    ids, rows = np.asarray(texts.ids), np.asarray(texts.logits)
    return [
        (ids[i, n : n + count].tolist(), rows[i, :count] if keep else None)
        for i, (n, count) in enumerate(zip(lengths, counts, strict=True))
    ]


@functools.partial(jax.jit, static_argnames="prefill")
def _grow(
    model: Decoder,
    schedule: Schedule,
    texts: _Texts,
    starts: Int[Array, " b"],
    steps: Int[Array, ""],
    sampling: Sampling | None,
    keys: Array,
    stop: Int[Array, " e"],
    edits: tuple[Edit, ...],
    *,
    prefill: int,
) -> _Texts:
    """`texts` with `steps` more tokens: one pass over the first `prefill` slots, then one over each new token."""
    slots = texts.ids.shape[1]

    def begin(ids: Array, length: Array, prompt: Array) -> tuple[Array, Past]:
        past = no_past(model, edits)
        passed = forward(model, model.embed(ids[:prefill]), schedule, past, edits, start=0, first=prompt - 1)
        room = ((0, 0), (0, slots - prefill), (0, 0), (0, 0))
        cache = jax.tree.map(lambda a: jnp.pad(a, room), passed.new)
        return passed.output[length - 1], Past(cache, tuple(drive[length - 1] for drive in passed.drives))

    def go_on(past: Past, ids: Array, length: Array, prompt: Array) -> tuple[Array, Past]:
        start = length - 1
        token = jax.lax.dynamic_slice_in_dim(ids, start, 1)
        passed = forward(model, model.embed(token), schedule, past, edits, start=start, first=prompt - 1)
        cache = jax.tree.map(
            lambda earlier, new: jax.lax.dynamic_update_slice_in_dim(earlier, new, start, axis=1),
            past.cache,
            passed.new,
        )
        return passed.output[0], Past(cache, tuple(drive[0] for drive in passed.drives))

    def add(texts: _Texts, outputs: Array) -> _Texts:
        logits = at_least_float32(model.unembed(outputs))
        at = jax.vmap(jax.random.fold_in)(keys, texts.lengths)
        token = jax.vmap(functools.partial(chosen, sampling))(logits, at)
        place, rows = jnp.where(texts.done, slots, texts.lengths), jnp.arange(len(token))
        ids = texts.ids.at[rows, place].set(token.astype(texts.ids.dtype), mode="drop")
        kept = texts.logits.at[rows, place - starts].set(logits.astype(texts.logits.dtype), mode="drop")
        lengths = texts.lengths + jnp.where(texts.done, 0, 1)
        return _Texts(ids, lengths, texts.done | jnp.isin(token, stop), kept)

    def more(state: tuple[Array, _Texts, Past]) -> Array:
        return (state[0] < steps) & ~state[1].done.all()

    def step(state: tuple[Array, _Texts, Past]) -> tuple[Array, _Texts, Past]:
        count, texts, past = state
        outputs, past = jax.vmap(go_on)(past, texts.ids, texts.lengths, starts)
        return count + 1, add(texts, outputs), past

    outputs, past = jax.vmap(begin)(texts.ids, texts.lengths, starts)
    _, texts, _ = jax.lax.while_loop(more, step, (jnp.ones((), int), add(texts, outputs), past))
    return texts
