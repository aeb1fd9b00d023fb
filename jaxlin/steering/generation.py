r"""Generation with a cache: one pass over the prompt, then one compiled step for each token.

Sequences are padded on the right, so that one program serves prompts of any length up to a multiple of
`LENGTH_MULTIPLE`: no token attends to the padding, and the text overwrites it as it grows. A batch is a `jax.vmap` of a
step.

If the frequencies of a rope depend on the length of the text, a change of them rotates *every* token differently, and
so changes the keys and values of all layers but the first: the cache is then wrong. So the frequencies are computed for
each length, and where they change, the full text is passed again. With LongRoPE that happens once, when the text
outgrows the trained length (transformers drops Phi-3's cache there too). With dynamic NTK scaling it happens at every
token past the trained length (transformers keeps the old keys there, and its cached and uncached outputs differ).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlin.activations import Edit, check_edits
from jaxlin.common.arguments import check_not_traced, checked
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.kv_cache import map_caches
from jaxlin.nn.layers import at_least_float32
from jaxlin.nn.prompt import PromptError
from jaxlin.nn.schedule import Schedule
from jaxlin.nn.stack import Stack
from jaxlin.results import traced_to
from jaxlin.steering.edited_model import State, forward, initial_state, schedule_at
from jaxlin.steering.generated import Generation
from jaxlin.steering.samplers import Sampling, SamplingError, make_sampling, sample_token
from jaxlin.tokenizer import Tokenizer, require_tokenizer

LENGTH_MULTIPLE = 16
"""Lengths are rounded up to a multiple of this, so that prompts of about the same length share a program."""

Prompt = str | Sequence[int]
"""A text, or its token ids."""


@checked
def generate(
    model: Decoder, tokenizer: Tokenizer | None, prompt: Prompt, max_new_tokens: int = 64, **options: Any
) -> Generation:
    """Continue one prompt; the options are those of `generate_batch`."""
    return generate_batch(model, tokenizer, [prompt], max_new_tokens, **options)[0]


@checked
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
    """Continue several prompts, which do not influence each other; the tokens are those of the model without a cache.

    Args:
        model: any decoder, whether loaded with ``linearize=True`` or not.
        tokenizer: its tokenizer.
        prompts: texts or token ids.
        max_new_tokens: the largest number of new tokens for each prompt.
        temperature: 0 takes the likeliest token; above 0, tokens are drawn.
        top_k: only the `top_k` likeliest tokens are drawn; all by default. See `Sampling`.
        top_p: only the likeliest tokens that sum to this probability are drawn; all by default. See `Sampling`.
        seed: the seed of the draws. Those of a prompt also depend on its index in `prompts`, and on nothing else.
        stop_token_ids: the ids that end a text; the tokenizer's `stop_ids` by default.
        edits: edits of the residual stream, see `jaxlin.steering`.
        return_logits: whether each `Generation` has its logits.

    Raises:
        PromptError: no prompts, an empty one, an id outside the vocabulary, or a text that would outgrow the model's
            context.
        SamplingError: an invalid number of tokens, temperature, top-k or top-p.
        SiteError: an edit at a site that the model does not have.
        SteeringError: an object that is not an edit, or an edit for a residual stream of another width.
    """
    check_not_traced("Generation", model, prompts, edits)
    if not len(prompts):
        raise PromptError("Prompts: expected a list of one prompt or more; found an empty one.")
    if max_new_tokens < 1:
        raise SamplingError(f"New tokens: expected 1 or more; found {max_new_tokens}.")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    sampling = make_sampling(model.config.vocab_size, temperature, top_k, top_p)
    tokenizer = require_tokenizer(tokenizer, "A generation")
    checked = check_edits(model, edits)
    ids = [prompt_ids(model, tokenizer, prompt, max_new_tokens) for prompt in prompts]
    stop = list(tokenizer.stop_ids if stop_token_ids is None else stop_token_ids)
    keys = [jax.random.fold_in(jax.random.key(seed), index) for index in range(len(ids))]
    run = functools.partial(_continue_prompts, model, max_new_tokens, sampling, stop, checked, return_logits)
    # Prompts of different lengths would meet a change of frequencies at different steps, so they run one by one.
    shortest, longest = (extreme(map(len, ids), default=1) for extreme in (min, max))
    is_one_batch = len(list(frequency_spans(model, shortest, longest + max_new_tokens))) == 1
    groups = [range(len(ids))] if ids and is_one_batch else [range(i, i + 1) for i in range(len(ids))]
    results = [each for group in groups for each in run([ids[i] for i in group], jnp.stack([keys[i] for i in group]))]
    generations = []
    for prompt, (new, logits) in zip(ids, results, strict=True):
        ended, text = bool(new) and new[-1] in stop, _new_text(tokenizer, prompt, new)
        generation = Generation(prompt, new, ended, text, logits)
        generations.append(traced_to(generation, model, ids=prompt, tokenizer=tokenizer, **settings))
    return generations


def prompt_ids(model: Decoder, tokenizer: Tokenizer, prompt: Prompt, max_new_tokens: int) -> list[int]:
    """The token ids of a prompt, with which the new tokens still fit into the model's context.

    Raises:
        PromptError: see `generate_batch`.
    """
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    model.embed(ids)  # raises PromptError for an invalid prompt
    ids = [int(i) for i in ids]
    context = model.config.max_position_embeddings
    if context is not None and len(ids) + max_new_tokens > context:
        raise PromptError(
            f"Prompt and continuation: expected at most {context} tokens, this model's context; found {len(ids)} and "
            f"{max_new_tokens} new ones. Ask for at most {context - len(ids)} new tokens, or shorten the prompt."
        )
    return ids


def _new_text(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    # Some decoders strip a space at the start of what they decode, so the new tokens are decoded after the prompt.
    before, text = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
    return text[len(before) :] if text.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def _frequencies(model: Decoder, tokens: int) -> tuple[Any, ...]:
    """The rotary frequencies of a text of `tokens`, in a form that can be compared."""
    ropes = (rope.frequencies(tokens) for rope in dict.fromkeys(model.config.ropes))
    return tuple((inv_freq.tobytes(), scale) for inv_freq, scale in ropes)


def frequency_spans(model: Decoder, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The lengths in ``range(start, stop)``, split into spans within which the rotary frequencies are the same."""
    while start < stop:
        frequencies, end = _frequencies(model, start), start + 1
        while end < stop and _frequencies(model, end) == frequencies:
            end += 1
        yield start, end
        start = end


def round_up(tokens: int) -> int:
    """`tokens`, rounded up to a multiple of `LENGTH_MULTIPLE`."""
    return -(-tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


class _Texts(NamedTuple):
    """A batch of texts that grow.

    Attributes:
        ids: the token ids, padded on the right.
        lengths: the length of each text.
        done: whether a stop token has ended the text.
        logits: the logits of the new tokens, ``[b, n, vocab]``; n is 0 if they are not returned.
    """

    ids: Int[Array, "b s"]
    lengths: Int[Array, " b"]
    done: Array
    logits: Float[Array, "b n vocab"]


def _continue_prompts(
    model: Decoder,
    max_new_tokens: int,
    sampling: Sampling | None,
    stop: list[int],
    edits: tuple[Edit, ...],
    return_logits: bool,
    prompts: list[list[int]],
    keys: Array,
) -> list[tuple[list[int], np.ndarray | None]]:
    """The new ids of each prompt, and their logits. Several prompts must be in one span of frequencies throughout."""
    lengths = [len(ids) for ids in prompts]
    slots, dtype = round_up(max(lengths) + max_new_tokens), jnp.promote_types(model.dtype, jnp.float32)
    padded = np.zeros((len(prompts), slots), np.int32)
    for row, ids in zip(padded, prompts, strict=True):
        row[: len(ids)] = ids
    logits = jnp.zeros((len(prompts), max_new_tokens if return_logits else 0, model.config.vocab_size), dtype)
    starts, stop_ids = jnp.asarray(lengths), jnp.asarray(stop, int)
    texts = _Texts(jnp.asarray(padded), starts, jnp.zeros(len(prompts), bool), logits)
    for start, end in frequency_spans(model, lengths[0], lengths[0] + max_new_tokens):
        if bool(texts.done.all()):
            break
        prefill = round_up(max(lengths) + start - lengths[0])
        schedule = schedule_at(model, start)
        texts = _grow(model, schedule, texts, starts, end - start, sampling, keys, stop_ids, edits, prefill=prefill)
    counts = [int(end) - start for end, start in zip(texts.lengths, lengths, strict=True)]
    ids, rows = np.asarray(texts.ids), np.asarray(texts.logits)
    return [
        (ids[i, n : n + count].tolist(), rows[i, :count] if return_logits else None)
        for i, (n, count) in enumerate(zip(lengths, counts, strict=True))
    ]


@functools.partial(jax.jit, static_argnames="prefill")
def _grow(
    model: Decoder,
    schedule: Schedule | Stack,
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

    def first_pass(ids: Array, length: Array, prompt: Array) -> tuple[Array, State]:
        x, state = model.embed(ids[:prefill]), initial_state(model, edits)
        result = forward(model, x, schedule, state, edits, start=0, first_new=prompt - 1, stop=length)
        cache = map_caches(lambda new: new.with_room(slots), result.new)
        return result.output[length - 1], State(cache, tuple(drive[length - 1] for drive in result.drives))

    def next_pass(state: State, ids: Array, length: Array, prompt: Array) -> tuple[Array, State]:
        start = length - 1
        x = model.embed(jax.lax.dynamic_slice_in_dim(ids, start, 1), start)
        result = forward(model, x, schedule, state, edits, start=start, first_new=prompt - 1, stop=length)
        cache = map_caches(lambda earlier, new: earlier.followed_by(new, start), state.cache, result.new)
        return result.output[0], State(cache, tuple(drive[0] for drive in result.drives))

    def add_tokens(texts: _Texts, outputs: Array) -> _Texts:
        logits = at_least_float32(model.unembed(outputs))
        draw_keys = jax.vmap(jax.random.fold_in)(keys, texts.lengths)
        tokens = jax.vmap(functools.partial(sample_token, sampling))(logits, draw_keys)
        # A slot past the last is dropped: texts that are done do not change.
        slot, rows = jnp.where(texts.done, slots, texts.lengths), jnp.arange(len(tokens))
        ids = texts.ids.at[rows, slot].set(tokens.astype(texts.ids.dtype), mode="drop")
        stored = texts.logits.at[rows, slot - starts].set(logits.astype(texts.logits.dtype), mode="drop")
        lengths = texts.lengths + jnp.where(texts.done, 0, 1)
        return _Texts(ids, lengths, texts.done | jnp.isin(tokens, stop), stored)

    def goes_on(carry: tuple[Array, _Texts, State]) -> Array:
        return (carry[0] < steps) & ~carry[1].done.all()

    def step(carry: tuple[Array, _Texts, State]) -> tuple[Array, _Texts, State]:
        count, texts, states = carry
        outputs, states = jax.vmap(next_pass)(states, texts.ids, texts.lengths, starts)
        return count + 1, add_tokens(texts, outputs), states

    outputs, states = jax.vmap(first_pass)(texts.ids, texts.lengths, starts)
    _, texts, _ = jax.lax.while_loop(goes_on, step, (jnp.ones((), int), add_tokens(texts, outputs), states))
    return texts
