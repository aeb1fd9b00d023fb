"""Table 2: texts steered by the map of a phrase, and by simpler operators made from the same phrase or word."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlin.common.progress import progress_bar
from jaxlin.report.paper.markdown import escaped, table
from jaxlin.report.paper.part import Data, Part
from jaxlin.report.paper.subject import Subject
from jaxlin.steering import Edit, add, mean_difference, paper_code, paper_equation, token_direction
from jaxlin.steering.dose import DoseCurve, dose_curve

PROMPTS, NEW_TOKENS = 6, 24
"""The number of figure 3's phrases that are continued, and of tokens by which."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""The strengths of the paper's examples lie between 0.17 and 1.03."""
DEPTH = 2 / 3
"""The share of the layers after which the paper's code steers by default."""


def compute(subject: Subject) -> Data:
    """A row for each operator at each strength; the target is the phrase's last word."""
    model, tokenizer = subject.model, subject.tokenizer
    phrase = tokenizer.encode(subject.steer)
    prompts = [tokenizer.encode(text) for text in subject.phrases[:PROMPTS]]
    layer = min(round(DEPTH * model.config.num_hidden_layers), model.config.num_hidden_layers - 1)
    target = _target(subject, phrase)
    operators = list(_operators(subject, phrase, prompts, layer, target))
    bar = progress_bar(operators, show=subject.progress, desc="operators", unit="operator", leave=False)
    rows: list[Data] = []
    for name, edit in bar:
        strengths = STRENGTHS if rows else (0.0, *STRENGTHS)
        curve = dose_curve(model, tokenizer, edit, prompts, target, strengths, max_new_tokens=NEW_TOKENS)
        rows += [_row(curve, i, name if strength else "untouched") for i, strength in enumerate(curve.strengths)]
    return {
        "phrase": subject.steer,
        "target": tokenizer.token(target).strip(),
        "prompts": subject.phrases[:PROMPTS],
        "layer": layer,
        "max_new_tokens": NEW_TOKENS,
        "seed": subject.seed,
        "rows": rows,
    }


def _target(subject: Subject, phrase: list[int]) -> int:
    """The phrase's last word if it is one token; else the likeliest next token that is made of letters."""
    model, tokenizer = subject.model, subject.tokenizer
    last = tokenizer.token(phrase[-1]).strip()
    if last.isalpha() and last == subject.steer.split()[-1]:
        return phrase[-1]
    logits = np.asarray(model.unembed(jax.jit(lambda model, x: model(x)[-1])(model, model.embed(phrase))))
    order = np.argsort(-logits[: tokenizer.vocab_size], kind="stable").tolist()
    return next((i for i in order if tokenizer.token(i).strip().isalpha()), order[0])


def _operators(
    subject: Subject, phrase: list[int], prompts: list[list[int]], layer: int, target: int
) -> Iterator[tuple[str, Edit]]:
    """The two of the paper, and three that add a vector at the site where the first of them acts."""
    model, site = subject.model, ("resid_post", layer)
    yield "equation 16", paper_equation(model, model.embed(phrase), layer)
    if layer:
        yield "the paper's code", paper_code(model, model.embed(phrase), layer)
    yield "the phrase's activation", add(site, mean_difference(model, [phrase], prompts, site))
    yield "the target's unembedding", add(site, token_direction(model, target))
    direction = jax.random.normal(jax.random.key(subject.seed), (model.config.hidden_size,), jnp.float32)
    yield "a random direction", add(site, direction)


def _row(curve: DoseCurve, i: int, name: str) -> Data:
    return {
        "operator": name,
        "site": list(curve.site),
        "where": curve.where,
        "strength": float(curve.strengths[i]),
        "rate": float(curve.target_rate[i]),
        "probability": float(curve.target_probability[i]),
        "kl": float(curve.kl[i]),
        "surprise": float(curve.surprise[i]),
        "repetition": float(curve.repetition[i]),
        "texts": curve.texts[i],
    }


def caption(data: Data) -> str:
    """What it shows: each operator at the strength at which the target comes most often, or the cheapest of these."""
    rows = data["rows"]
    best: dict[str, Data] = {}
    for row in sorted(rows[1:], key=lambda row: (-row["rate"], row["kl"])):
        best.setdefault(row["operator"], row)
    names = dict.fromkeys(row["operator"] for row in rows[1:])
    results = [f"{name} in {_share(best[name]['rate'])} ({best[name]['kl']:.2g})" for name in names]
    return (
        f"Steered by {data['phrase']!r}, {data['target']!r} comes in {_share(rows[0]['rate'])} of "
        f"{len(data['prompts'])} untouched texts, and at best, with the KL divergence in nats that it costs, by "
        f"{', '.join(results)}."
    )


def _share(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def markdown(data: Data) -> str:
    """A row for each operator and strength, with the text after the first prompt."""
    first = data["prompts"][0]
    heads = ["operator", "strength", f"texts with {escaped(repr(data['target']))}", "its probability"]
    heads += ["KL, nats", "surprise, nats", "repeated", f"after {escaped(repr(first))}"]
    rows = [
        [
            row["operator"],
            f"{row['strength']:g}",
            _share(row["rate"]),
            f"{row['probability']:.2g}",
            f"{row['kl']:.2g}",
            f"{row['surprise']:.2g}",
            _share(row["repetition"]),
            escaped(" ".join(row["texts"][0].split())),
        ]
        for row in data["rows"]
    ]
    return (
        f"{table(heads, rows)}\n"
        f"The operators act after layer {data['layer'] + 1}, counted from 1; that of the paper's code acts before it. "
        "The strength is 1 − λ for equation 16, λ for the paper's code, and for the others a share of the norm of the "
        "residual stream. KL is the divergence of the next token's distribution from the untouched model's; surprise "
        "is that of the untouched model at the steered text.\n"
    )


PART = Part("table_2", "Steered texts, and what they cost", compute, caption, markdown=markdown)
