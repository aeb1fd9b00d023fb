"""The rope parameters of a config.json, converted to the frozen dataclasses of `jaxlin.nn.ropes`.

The formulas are those of transformers' `modeling_rope_utils`, computed in float64.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from jaxlin.checkpoint.config import how_to_ignore, is_number
from jaxlin.checkpoint.key_table import harmless_rope_keys
from jaxlin.common.errors import ConfigError
from jaxlin.common.printable import quoted
from jaxlin.nn.ropes import DynamicRope, LongRope, Rope, plain_frequencies

MAX_FLOAT32 = float(np.finfo(np.float32).max)
"""The bound of frequencies and of the base: a model computes with them in float32 at least."""


@dataclass
class _Parameters:
    """The rope parameters of one layer type, whose keys are taken one by one; those that are not taken are refused."""

    untaken: dict[str, Any]
    kind: str
    dim: int
    theta: float
    max_position_embeddings: int
    truncate: bool

    def error(self, expected: str, value: str) -> ConfigError:
        return ConfigError(f"Rope parameters of type {quoted(self.kind)}: expected {expected}; found {value}.")

    def take(self, key: str, default: Any = None) -> Any:
        value = self.untaken.pop(key, None)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key, default)
        if not is_number(value):
            raise self.error(f"a number under {quoted(key)}", quoted(value))
        return float(value)

    def numbers(self, key: str, length: int) -> Float64[np.ndarray, " n"]:
        value = self.take(key)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(
                f"{length} numbers under {quoted(key)}", f"{len(value)}" if isinstance(value, list) else "none"
            )
        if not all(map(is_number, value)):
            raise self.error(f"{length} numbers under {quoted(key)}", quoted(value))
        return np.array(value, float)

    @property
    def plain(self) -> Float64[np.ndarray, " r"]:
        return plain_frequencies(self.dim, self.theta)

    @property
    def original_max_position_embeddings(self) -> float:
        length = self.number("original_max_position_embeddings", float(self.max_position_embeddings))
        if length < 1:
            raise self.error("a number of tokens under 'original_max_position_embeddings'", f"{length}")
        return length


def _default(p: _Parameters) -> Rope:
    return Rope(tuple(p.plain))


def _linear(p: _Parameters) -> Rope:
    return Rope(tuple(p.plain / p.number("factor")))


def _divisors(p: _Parameters) -> Rope:
    """Each frequency has a divisor of its own: a GGUF file stores Llama 3's scaling so, as ``rope_freqs.weight``."""
    return Rope(tuple(p.plain / p.numbers("divisors", p.dim // 2)))


def _proportional(p: _Parameters) -> Rope:
    """Gemma 4: the first part of the pairs of a whole head turn, as slowly as if all of them did; the others do not."""
    share = p.number("partial_rotary_factor", 1.0)
    if not 0 < share <= 1:
        raise p.error("a share in 0..1 under 'partial_rotary_factor'", f"{share}")
    turns = int(share * p.dim // 2)
    return Rope(tuple(np.where(np.arange(p.dim // 2) < turns, p.plain / p.number("factor", 1.0), 0.0)))


def _dynamic(p: _Parameters) -> Rope:
    return DynamicRope(tuple(p.plain), 1.0, p.theta, p.number("factor"), p.max_position_embeddings)


def _llama3(p: _Parameters) -> Rope:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones are not, and those between are blended."""
    low, high = p.number("low_freq_factor"), p.number("high_freq_factor")
    if high <= low:
        raise p.error(f"high_freq_factor above low_freq_factor ({low})", f"{high}")
    turns = p.original_max_position_embeddings * p.plain / (2 * math.pi)
    unscaled = np.clip((turns - low) / (high - low), 0, 1)
    return Rope(tuple(p.plain * (unscaled + (1 - unscaled) / p.number("factor"))))


def _yarn(p: _Parameters) -> Rope:
    """Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023."""
    original = p.original_max_position_embeddings
    factor = p.number("factor", p.max_position_embeddings / original)

    def attention_factor(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, mscale_all_dim = p.number("mscale", 0.0), p.number("mscale_all_dim", 0.0)
    if mscale and mscale_all_dim:
        default_scale = attention_factor(mscale) / attention_factor(mscale_all_dim)
    else:
        default_scale = attention_factor(1.0)
    scale = p.number("attention_factor", default_scale)

    def feature_of(turns: float) -> float:
        """The feature, as a real number, that makes this number of turns over the trained length."""
        return p.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(p.theta))

    low, high = feature_of(p.number("beta_fast", 32.0) or 32.0), feature_of(p.number("beta_slow", 1.0) or 1.0)
    if p.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, p.dim - 1)
    ramp = np.clip((np.arange(p.dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    return Rope(tuple(p.plain * (1 - ramp) + p.plain / factor * ramp), scale)


def _longrope(p: _Parameters) -> Rope:
    """Ding et al., "LongRoPE", 2024, as Phi-3 uses it."""
    original = p.original_max_position_embeddings
    factor = p.number("factor", p.max_position_embeddings / original)
    scale = p.number("attention_factor", math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
    short, long = (tuple(p.plain / p.numbers(key, p.dim // 2)) for key in ("short_factor", "long_factor"))
    return LongRope(short, scale, long, original)


_KINDS: dict[str, Callable[[_Parameters], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "divisors": _divisors,
    "llama3": _llama3,
    "proportional": _proportional,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # the name Phi-3's first files gave to longrope
}


def rope_from_parameters(
    parameters: Mapping[str, Any],
    *,
    dim: int,
    theta: float,
    max_position_embeddings: int,
    truncate: bool | None = None,
    path: str = "rope_parameters",
) -> Rope:
    """The `Rope` of one dictionary of rope parameters (``rope_parameters`` or ``rope_scaling`` of config.json).

    Args:
        parameters: the dictionary; `rope_type` (or `type`) names its kind.
        dim: how many features of a head are rotated.
        theta: the base, unless `parameters` has a `rope_theta` of its own.
        max_position_embeddings: the longest prompt that the config allows.
        truncate: whether YaRN rounds the ends of its ramp; None for the `truncate` of `parameters`.
        path: the dictionary's place in config.json, for messages.

    Raises:
        ConfigError: the kind is unknown, a value is missing or of the wrong shape, the values give no frequencies, or
            there is a key that the kind does not read and that might change the frequencies.
    """
    untaken = dict(parameters)
    kind = untaken.pop("rope_type", None) or untaken.pop("type", None) or "default"
    untaken.pop("type", None)
    own_truncate = untaken.pop("truncate", True)
    if own_truncate is not None and not isinstance(own_truncate, bool):
        raise ConfigError(
            f"Rope parameters of type {quoted(kind)}: expected true or false under 'truncate'; found "
            f"{quoted(own_truncate)}."
        )
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(
            f"Rope type: expected one of {', '.join(_KINDS)}; found {quoted(kind)}, which jaxlin cannot read."
        )
    truncate = bool(own_truncate) if truncate is None else truncate
    reader = _Parameters(untaken, kind, dim, theta, max_position_embeddings, truncate)
    reader.theta = reader.number("rope_theta", theta)
    try:
        with np.errstate(all="ignore"):
            rope = _KINDS[kind](reader)
            lengths = (1, max_position_embeddings, 2 * max_position_embeddings)
            frequencies = [np.append(*rope.frequencies(tokens)) for tokens in lengths]
    except ConfigError:
        raise
    except (ArithmeticError, ValueError) as error:  # of math.log and math.pow
        raise reader.error("numbers that give frequencies", f"{quoted(dict(parameters))} ({error})") from error
    slowest = np.greater_equal if kind == "proportional" else np.greater
    if (
        not all((slowest(each, 0) & (each <= MAX_FLOAT32)).all() for each in frequencies)
        or not 1 <= reader.theta <= MAX_FLOAT32
    ):
        raise reader.error("numbers that give positive frequencies of float32", quoted(dict(parameters)))
    harmless = harmless_rope_keys(kind)
    if unread := [key for key, value in untaken.items() if key not in harmless and value is not None]:
        ignored = how_to_ignore([f"{path}.{key}" for key in unread])
        raise reader.error("only keys that this type reads", f"{quoted(unread)}. {ignored}".rstrip("."))
    return rope
