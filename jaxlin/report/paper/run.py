"""`paper`: all figures and tables, part by part, so that an interrupted run goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxlin.common.files import write_lock
from jaxlin.nn.arguments import check_model, check_tokenizer
from jaxlin.nn.decoder import Decoder, PromptError
from jaxlin.nn.fingerprints import fingerprint
from jaxlin.report.paper import (
    figure_1b,
    figure_2a,
    figure_2b,
    figure_3,
    figure_4a,
    figure_4b,
    figure_4cd,
    table_1,
    table_2,
    table_baselines,
)
from jaxlin.report.paper.folder import RUN, Folder, Journal, PaperError, check_folder
from jaxlin.report.paper.markdown import index, page
from jaxlin.report.paper.part import Part
from jaxlin.report.paper.style import rendered, require_matplotlib
from jaxlin.report.paper.subject import Subject, shipped_phrases
from jaxlin.steering.generation import prompt_ids
from jaxlin.tokenizer import Tokenizer, required

TEXT = "The bridge out of Marin is the"
"""The paper's prompt."""
STEER = "The bridge out of Marin is the Golden"
"""The phrase that it steers by."""

PARTS: tuple[Part, ...] = (
    figure_1b.PART,
    figure_2a.PART,
    figure_2b.PART,
    figure_4a.PART,
    figure_4b.PART,
    figure_4cd.CUMULATIVE,
    figure_4cd.SINGLE,
    table_1.PART,
    table_baselines.PART,
    table_2.PART,
    figure_3.PART,
)
"""In the order in which they are computed: what takes longest last."""


def check(out: str | os.PathLike[str], **settings: Any) -> None:
    """Say so before a model is loaded if there is nothing to draw with, or `out` cannot take the run.

    Args:
        out: a folder, which may be absent.
        **settings: what is known of ``model``, ``text``, ``steer``, ``dtype``, ``rule`` and ``seed``.

    Raises:
        PaperError: see there.
    """
    require_matplotlib()
    check_folder(Path(out), settings)


def paper(
    model: Decoder,
    tokenizer: Tokenizer | None,
    text: str = TEXT,
    *,
    out: str | os.PathLike[str],
    name: str | None = None,
    steer: str = STEER,
    phrases: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the paper's figures 1B, 2A, 2B, 3 and 4A to D, its tables and one of null baselines to a folder.

    Each part is a JSON file with every number of it, and from that a PNG and an SVG, or a Markdown table; `README.md`
    lists them with captions that say what they show. A part that is there already is not computed again.

    Args:
        model: any decoder; its `rule` is that of the maps.
        tokenizer: its tokenizer.
        text: the prompt.
        out: the folder, which is made if it is absent, in one that is there.
        name: what the model is called; its family and size unless given.
        steer: the phrase whose map steers in table 2.
        phrases: the texts of figure 3, the first of which table 2 continues; the 100 that ship unless given.
        seed: of the shuffled weights and tokens, and of a random direction to steer along.
        progress: show bars.

    Returns:
        The path of the README.

    Raises:
        PaperError: matplotlib is not installed; `out` holds other files or another run, or cannot be written.
        PromptError: a text or phrase that is empty, or longer than the model's context leaves room for.
    """
    check_model(model)
    check_tokenizer(tokenizer)
    texts = shipped_phrases() if phrases is None else list(phrases)
    if not text or not texts or not all(texts):
        raise PromptError("Prompt: expected a text, and phrases, of one token or more; found none.")
    tokenizer = required(tokenizer, "The paper")
    for each in (text, steer, *texts):
        model.embed(tokenizer.encode(each))
    for each in texts[: table_2.PROMPTS]:
        prompt_ids(model, tokenizer, each, table_2.NEW_TOKENS)
    settings = {
        "model": name or _in_words(model),
        "text": text,
        "steer": steer,
        "dtype": str(model.dtype),
        "rule": model.rule,
        "seed": seed,
        "phrases": hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
        "fingerprint": fingerprint(model)[:16],
    }
    check(out, **settings)
    folder = Folder.taken(Path(out), settings)
    with write_lock(folder.path / RUN, PaperError):
        journal = Journal(folder.path / "figure_3.part.jsonl")
        subject = Subject(model, tokenizer, text, texts, steer, seed, journal, progress)
        bar = tqdm(PARTS, desc="paper", unit="part", disable=None if progress else True)
        try:
            for part in bar:
                bar.set_postfix_str(part.name)
                if folder.finished(part.name) is None:
                    data = json.loads(json.dumps(part.compute(subject)))
                    folder.finish(part.name, _document(part, settings, subject.tokens, data))
        except KeyboardInterrupt as interruption:
            interruption.add_note(f"What is finished is in {folder.path}: the same call goes on from there.")
            raise
        journal.clear()
        return redraw(out)


def redraw(out: str | os.PathLike[str]) -> Path:
    """Draw what is finished in the folder of a run again, from its JSON files alone.

    Returns:
        The path of the README.

    Raises:
        PaperError: matplotlib is not installed, or `out` holds no run or cannot be written.
    """
    require_matplotlib()
    folder = Folder.opened(Path(out))
    listed, tokens = [], []
    for part in sorted(PARTS, key=lambda part: part.name):
        document = folder.finished(part.name)
        if document is None:
            continue
        data, tokens = document["data"], document["tokens"]
        caption = part.caption(data)
        if part.draw is not None:
            for suffix, content in rendered(part.draw, data).items():
                folder.write(f"{part.name}.{suffix}", content)
        if part.markdown is not None:
            folder.write(f"{part.name}.md", page(part.title, caption, part.markdown(data)).encode())
        listed.append((part.name, part.title, caption, part.draw is not None))
    folder.write("README.md", index(folder.settings, tokens, listed).encode())
    return folder.path / "README.md"


def _in_words(model: Decoder) -> str:
    config = model.config
    return f"{type(model).__name__}, {config.num_hidden_layers} layers, {config.hidden_size} features"


def _document(part: Part, settings: dict[str, Any], tokens: list[str], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": part.name,
        "title": part.title,
        "caption": part.caption(data),
        "settings": settings,
        "versions": {package: version(package) for package in ("jaxlin", "jax", "flax", "numpy")},
        "tokens": tokens,
        "data": data,
    }
