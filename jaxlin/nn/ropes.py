r"""Rotary frequencies: what a config's rope parameters say, as radians a token.

Each kind is a frozen value that answers `frequencies(tokens)` with $\omega$ (``[r]``, float64) and the factor of
cosine and sine. The formulas follow transformers' `modeling_rope_utils`, in float64.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlin.checkpoint.config import how_to_ignore, is_number
from jaxlin.checkpoint.key_table import harmless_rope_keys
from jaxlin.common.errors import ConfigError
from jaxlin.common.printable import quoted

FLOAT32 = float(np.finfo(np.float32).max)
"""Frequencies, and the base whose powers they are, are computed with in float32 at least."""


@dataclass(frozen=True)
class Rope:
    """Frequencies that do not depend on the length of the prompt."""

    inv_freq: tuple[float, ...]
    scale: float = 1.0

    def frequencies(self, tokens: int) -> tuple[np.ndarray, float]:
        """The frequencies for a prompt of `tokens`, and the factor of cosine and sine."""
        return np.array(self.inv_freq), self.scale


@dataclass(frozen=True)
class Dynamic(Rope):
    """NTK-aware scaling: past the trained length the base grows with the prompt."""

    theta: float = 1e4
    factor: float = 1.0
    max_position_embeddings: int = 0

    def frequencies(self, tokens: int) -> tuple[np.ndarray, float]:
        """As `Rope.frequencies`, with the base of this length."""
        dim = 2 * len(self.inv_freq)
        stretch = self.factor * max(tokens / self.max_position_embeddings, 1) - (self.factor - 1)
        return _plain(dim, self.theta * math.pow(stretch, dim / (dim - 2))), self.scale


@dataclass(frozen=True)
class LongRope(Rope):
    """Two tables: a prompt longer than the trained length takes the long one, at all its positions."""

    long_inv_freq: tuple[float, ...] = ()
    original_max_position_embeddings: float = 0

    def frequencies(self, tokens: int) -> tuple[np.ndarray, float]:
        """As `Rope.frequencies`, from the table of this length."""
        long = tokens > self.original_max_position_embeddings
        return np.array(self.long_inv_freq if long else self.inv_freq), self.scale


def no_rope(dim: int) -> Rope:
    """Frequencies of zero: nothing is rotated."""
    return Rope((0.0,) * (dim // 2))


def _plain(dim: int, theta: float) -> np.ndarray:
    return 1.0 / theta ** (np.arange(0, dim, 2) / dim)


def _default(p: "_Parameters") -> Rope:
    return Rope(tuple(_plain(p.dim, p.theta)))


def _linear(p: "_Parameters") -> Rope:
    return Rope(tuple(_plain(p.dim, p.theta) / p.number("factor")))


def _divisors(p: "_Parameters") -> Rope:
    """Frequencies divided one by one: how a GGUF file says Llama 3's scaling (its tensor ``rope_freqs.weight``)."""
    return Rope(tuple(_plain(p.dim, p.theta) / p.numbers("divisors", p.dim // 2)))


def _dynamic(p: "_Parameters") -> Rope:
    plain = tuple(_plain(p.dim, p.theta))
    return Dynamic(plain, 1.0, p.theta, p.number("factor"), p.max_position_embeddings)


def _llama3(p: "_Parameters") -> Rope:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    low, high = p.number("low_freq_factor"), p.number("high_freq_factor")
    if high <= low:
        raise p.error(f"high_freq_factor above low_freq_factor ({low})", f"{high}")
    plain = _plain(p.dim, p.theta)
    turns = p.original_max_position_embeddings * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return Rope(tuple(plain * (kept + (1 - kept) / p.number("factor"))))


def _yarn(p: "_Parameters") -> Rope:
    """Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023."""
    original = p.original_max_position_embeddings
    factor = p.number("factor", p.max_position_embeddings / original)

    def attention_factor(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, mscale_all_dim = p.number("mscale", 0.0), p.number("mscale_all_dim", 0.0)
    both = attention_factor(mscale) / attention_factor(mscale_all_dim) if mscale and mscale_all_dim else None
    scale = p.number("attention_factor", attention_factor(1.0) if both is None else both)

    def feature_of(turns: float) -> float:
        return p.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(p.theta))

    low, high = feature_of(p.number("beta_fast", 32.0) or 32.0), feature_of(p.number("beta_slow", 1.0) or 1.0)
    if p.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, p.dim - 1)
    ramp = np.clip((np.arange(p.dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    plain = _plain(p.dim, p.theta)
    return Rope(tuple(plain * (1 - ramp) + plain / factor * ramp), scale)


def _longrope(p: "_Parameters") -> Rope:
    """Ding et al., "LongRoPE", 2024, as Phi-3 uses it."""
    original = p.original_max_position_embeddings
    factor = p.number("factor", p.max_position_embeddings / original)
    scale = p.number("attention_factor", math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
    plain = _plain(p.dim, p.theta)
    short, long = (tuple(plain / p.numbers(key, p.dim // 2)) for key in ("short_factor", "long_factor"))
    return LongRope(short, scale, long, original)


_KINDS: dict[str, Callable[["_Parameters"], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "divisors": _divisors,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # the name Phi-3's first files gave to longrope
}


@dataclass
class _Parameters:
    """The rope parameters of one layer type, each key taken once; what nobody took is refused."""

    given: dict[str, Any]
    kind: str
    dim: int
    theta: float
    max_position_embeddings: int
    truncate: bool

    def error(self, expected: str, found: str) -> ConfigError:
        return ConfigError(f"Rope parameters of type {quoted(self.kind)}: expected {expected}, found {found}.")

    def take(self, key: str, default: Any = None) -> Any:
        value = self.given.pop(key, None)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key, default)
        if not is_number(value):
            raise self.error(f"a number under {quoted(key)}", quoted(value))
        return float(value)

    def numbers(self, key: str, length: int) -> np.ndarray:
        value = self.take(key)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(
                f"{length} numbers under {quoted(key)}", f"{len(value)}" if isinstance(value, list) else "none"
            )
        if not all(map(is_number, value)):
            raise self.error(f"{length} numbers under {quoted(key)}", quoted(value))
        return np.array(value, float)

    @property
    def original_max_position_embeddings(self) -> float:
        length = self.number("original_max_position_embeddings", float(self.max_position_embeddings))
        if length < 1:
            raise self.error("a number of tokens under 'original_max_position_embeddings'", f"{length}")
        return length


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
        max_position_embeddings: the config's.
        truncate: whether YaRN rounds the ends of its ramp; what `parameters` says unless given.
        path: where the dictionary stands in config.json, for messages.

    Raises:
        ConfigError: an unknown kind, a missing or misshapen value, one that gives no frequencies, or a key that might
            change them and that the kind does not read.
    """
    given = dict(parameters)
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    rounded = given.pop("truncate", True)
    if rounded is not None and not isinstance(rounded, bool):
        raise ConfigError(f"Rope parameters of type {quoted(kind)}: expected true or false under 'truncate'.")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(
            f"Rope type: expected one of {', '.join(_KINDS)}; found {quoted(kind)}, which jaxlin cannot read."
        )
    truncate = bool(rounded) if truncate is None else truncate
    reader = _Parameters(given, kind, dim, theta, max_position_embeddings, truncate)
    reader.theta = reader.number("rope_theta", theta)
    try:
        with np.errstate(all="ignore"):
            rope = _KINDS[kind](reader)
            lengths = (1, max_position_embeddings, 2 * max_position_embeddings)
            frequencies = [np.append(*rope.frequencies(tokens)) for tokens in lengths]
    except ConfigError:
        raise
    except (ArithmeticError, ValueError) as error:  # of math.log and math.pow
        raise reader.error("numbers that give frequencies", f"{dict(parameters)} ({error})"[:200]) from error
    if not all(((each > 0) & (each <= FLOAT32)).all() for each in frequencies) or not 1 <= reader.theta <= FLOAT32:
        raise reader.error("numbers that give positive frequencies of float32", f"{dict(parameters)}"[:200])
    harmless = harmless_rope_keys(kind)
    if unread := [key for key, value in given.items() if key not in harmless and value is not None]:
        ignored = how_to_ignore([f"{path}.{key}" for key in unread])
        raise reader.error("only keys that this type reads", f"{quoted(unread)}. {ignored}".rstrip("."))
    return rope
