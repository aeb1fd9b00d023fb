"""Odd configs: tiny models with one or two random edits, in transformers and in jaxlin. No difference may be silent."""

import copy
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.config_keys.contexts import ROPES, Context, contexts
from benchmarks.config_keys.keys import known_keys, known_rope_keys, values_of
from benchmarks.config_keys.measure import part_at
from benchmarks.config_keys.ported import Ported
from benchmarks.config_keys.reference import Reference
from jaxlin.checkpoint.key_table import measured_keys
from jaxlin.common.errors import JaxlinError
from jaxlin.loading.registry import FAMILIES

TOLERANCE = 4e-6
"""The largest difference of a logit, as a share of the largest logit."""

ROUNDING = 4
"""Beyond that, logits may differ by so many times the float32 error of transformers' own: an edit may make attention so
sharp that rounding grows."""

ATOMS = (
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    5,
    7,
    16,
    64,
    -1,
    0.25,
    0.5,
    1.0,
    3.5,
    1e-5,
    1e4,
    1e6,
    "default",
    "x",
    [],
    [1],
    {},
)
ABSENT = object()
"""Stands for a key that is left out."""


class Case(NamedTuple):
    """A randomly edited config.

    Attributes:
        context: the context whose config is edited.
        edits: new values by path; `ABSENT` for a key that is left out.
    """

    context: Context
    edits: dict[tuple[str, ...], Any]

    def config(self) -> dict[str, Any]:
        """The edited config.json."""
        config = copy.deepcopy(self.context.config)
        for (*path, key), value in self.edits.items():
            try:
                part = part_at(config, tuple(path))
            except (KeyError, TypeError):  # of an object that the other edit has replaced
                continue
            if not isinstance(part, dict):
                continue
            if value is ABSENT:
                part.pop(key, None)
            else:
                part[key] = copy.deepcopy(value)
        return config


class Finding(NamedTuple):
    """The outcome of one case.

    Attributes:
        case: the case.
        kind: ``"agree"``, ``"both refuse"``, ``"transformers refuses"``, ``"jaxlin refuses"``, ``"needlessly refused"``
            where transformers' logits are the unedited ones, ``"differ"`` or ``"raw"``, an error that is not jaxlin's.
        detail: the difference or the message.
    """

    case: Case
    kind: str
    detail: str


class Pool:
    """Contexts with their models in both libraries, which are built when a context is first drawn."""

    def __init__(self, types: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self.contexts = [each for each in contexts() if not types or each.config["model_type"] in types]
        self._models: dict[str, tuple[Reference, Ported] | None] = {}

    def models(self, context: Context) -> tuple[Reference, Ported] | None:
        """The models of a context; None where either library refuses it as it is."""
        if context.name not in self._models:
            try:
                reference = Reference(context.config)
                folder = self._folder / str(len(self._models))
                ported = Ported(reference, folder)
                ported.under(context.config)
                self._models[context.name] = reference, ported
            except Exception:
                self._models[context.name] = None
        return self._models[context.name]


def findings(number: int, seed: int, types: Sequence[str]) -> Iterator[Finding]:
    """Draw `number` cases and compare them."""
    draw, keys = random.Random(seed), known_keys()
    matter = sorted(set().union(*(measured_keys(name).changes for names in FAMILIES.values() for name in names)))
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(types, Path(folder))
        while done < number:
            context = draw.choice(pool.contexts)
            if (models := pool.models(context)) is None:
                continue
            case = Case(context, dict(drawn_edit(draw, context, matter, keys) for _ in range(draw.choice((1, 1, 2)))))
            yield compared(case, *models)
            done += 1


def drawn_edit(
    draw: random.Random, context: Context, matter: Sequence[str], keys: dict[str, list[Any]]
) -> tuple[tuple[str, ...], Any]:
    """The path of a key that is measured, present or possible, and a value of its type or of any type."""
    path, row = draw.choice(list(context.places.items()))
    own = part_at(context.config, path)
    if row.startswith("rope."):
        key = draw.choice(known_rope_keys())
        values = [value for each in ROPES.values() if key in each for value in (each[key],)]
        values += list(ROPES) if key in ("rope_type", "type") else [0.5, 1.0, 3.0, 16, 40, True, False]
    else:
        key = draw.choice((draw.choice(matter), draw.choice(sorted(own)), draw.choice(sorted(keys))))
        values = values_of(key, keys.get(key, []))
    if key == "model_type" or (key.endswith("_config") and isinstance(own.get(key), dict)):  # see `measure.rounds`
        key, values = "is_causal", [True, False]
    now = own.get(key)
    if isinstance(now, int | float) and not isinstance(now, bool):
        values += [now * 2, now / 2, now + 1, now // 2 or 1]
    if isinstance(now, list):
        values += [now[:-1], now[::-1], now + now]
    value = draw.choice((draw.choice(values), draw.choice(values), draw.choice(ATOMS), ABSENT))
    return (*path, key), value


def compared(case: Case, reference: Reference, ported: Ported) -> Finding:
    """Compare both libraries on a case."""
    config, expected, ours, message = case.config(), None, None, ""
    try:
        expected = reference.under(config)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"[:200]
    try:
        ours = ported.under(config)
    except JaxlinError as error:
        message = str(error)[:300]
    except Exception as error:
        return Finding(case, "raw", f"{type(error).__name__}: {error}"[:300])
    if expected is None or ours is None:
        kind = "both refuse" if expected is ours else "transformers refuses" if expected is None else "jaxlin refuses"
        if kind == "jaxlin refuses" and all(map(np.array_equal, expected or [], reference.logits)):
            kind = "needlessly refused"
        return Finding(case, kind, message)
    share = difference(expected, ours)
    if share <= TOLERANCE:
        return Finding(case, "agree", f"{share:.1e}")
    rounding = difference(expected, reference.under(config, torch.float64))
    kind = "agree" if share <= TOLERANCE + ROUNDING * rounding else "differ"
    return Finding(case, kind, f"{share:.1e}, where float32 costs transformers {rounding:.1e}")


def difference(expected: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> float:
    """The largest difference between logits, as a share of the largest of them."""
    pairs = zip(expected, ours, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1.0)) for a, b in pairs)


def report(number: int, seed: int, types: Sequence[str], *, needless: bool = False) -> int:
    """Print the cases that differ and the count of each kind; return how many differ or raise a foreign error."""
    kinds: Counter[str] = Counter()
    for finding in findings(number, seed, types):
        kinds[finding.kind] += 1
        if finding.kind in ("differ", "raw") or (needless and finding.kind == "needlessly refused"):
            edits = {
                ".".join(path): "absent" if value is ABSENT else value for path, value in finding.case.edits.items()
            }
            print(f"{finding.kind}: {finding.case.context.name}, {edits}: {finding.detail}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    return kinds["differ"] + kinds["raw"]
