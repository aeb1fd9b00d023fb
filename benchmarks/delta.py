"""Patterns of the gated delta rule beside softmax patterns of as many heads, and the memory of a long prompt.

Heads are those of a layer of Qwen3.5-0.8B: as many keys as values, with random entries.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.results import Finding, Ratio, Row
from benchmarks.setting import Clock, Setting, ratio
from benchmarks.timing import Timing, compiled, once
from jaxlin.nn.attention import attention_pattern
from jaxlin.nn.delta_rule import Chunked
from jaxlin.nn.patterns import Dense

HEADS, FEATURES = 16, 128
TOKENS, LONG = 1024, 4096
"""The longest prompt whose patterns are stored as arrays, and a longer one, which passes through chunks."""


def measure(setting: Setting) -> Iterator[Finding]:
    """Measure both lengths, unless the run is quick."""
    if setting.quick:
        yield f"delta: patterns of {TOKENS} and {LONG} tokens are left out of a quick run"
        return
    yield from patterns(setting)
    yield from long(setting)


def patterns(clock: Clock, tokens: int = TOKENS, heads: int = HEADS) -> Iterator[Finding]:
    """Measure the dense patterns of one layer."""
    rule, size = random_rule(tokens, heads), {"tokens": tokens, "heads": heads}

    def softmax(q: jax.Array, k: jax.Array) -> Dense:
        first = jnp.zeros(tokens, jnp.int32)
        pattern = attention_pattern(q, k, positions=jnp.arange(tokens), scale=1.0, first_visible=first)
        assert isinstance(pattern, Dense)
        return pattern

    ours, took, temporary = compiled(Chunked.dense, rule)
    beside, softmax_took, softmax_temporary = compiled(softmax, rule.q, rule.k)
    calls = {"delta rule": lambda: ours(rule), "softmax": lambda: beside(rule.q, rule.k)}
    timings, _ = clock.timed(calls)
    costs = {"delta rule": (took, temporary), "softmax": (softmax_took, softmax_temporary)}
    for name, timing in timings.items():
        yield Row.of("delta", name, size, timing, compile=costs[name][0], temporary=costs[name][1])
    yield Ratio("delta, over softmax", size, ratio(timings["delta rule"], timings["softmax"]))


def long(clock: Clock, tokens: int = LONG, heads: int = HEADS) -> Iterator[Finding]:
    """Measure the values of a long prompt through the chunks, and their transpose."""
    rule, size = random_rule(tokens, heads), {"tokens": tokens, "heads": heads}
    values = jax.random.normal(jax.random.key(1), (tokens, heads, FEATURES))

    def both_directions(rule: Chunked, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed, pull = jax.vjp(rule.mix, values)
        return mixed, pull(mixed)[0]

    program, took, temporary = compiled(both_directions, rule, values)
    clock.say(f"the delta rule of {tokens} tokens")
    seconds, rise = once(lambda: program(rule, values))
    name = "values mixed, and the transpose"
    yield Row.of("delta", name, size, Timing([seconds], rise), compile=took, temporary=temporary)
    yield Ratio("delta, memory", size, max(temporary, rise or 0) / 2**30)


def random_rule(tokens: int, heads: int, features: int = FEATURES) -> Chunked:
    """A delta rule with normed queries and keys, strengths in (0, 1), and decays that forget half in some tokens."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k = (jax.random.normal(key, (tokens, heads, features)) for key in keys[:2])
    q, k = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k))
    beta, decay = (jax.nn.sigmoid(jax.random.normal(key, (tokens, heads))) for key in keys[2:])
    return Chunked(q * features**-0.5, k, beta, -0.1 * decay)
