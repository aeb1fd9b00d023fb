"""`reproduce`: all figures and tables, part by part, so that an interrupted run goes on where it stopped."""

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxlin.common.arguments import checked
from jaxlin.common.files import checksum, resume_hint, write_lock
from jaxlin.common.progress import progress_bar
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.fingerprints import fingerprint
from jaxlin.nn.prompt import PromptError
from jaxlin.report.details import model_in_words
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
from jaxlin.report.paper.markdown import index, page
from jaxlin.report.paper.part import Part
from jaxlin.report.paper.run_folder import RUN_FILE, PaperError, RunFolder, check_folder
from jaxlin.report.paper.style import rendered, require_matplotlib
from jaxlin.report.paper.subject import Subject, shipped_phrases
from jaxlin.steering.generation import prompt_ids
from jaxlin.tokenizer import Tokenizer, require_tokenizer

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
"""In the order in which they are computed; those that take longest come last."""


def check_output(out: str | os.PathLike[str], **settings: Any) -> None:
    """Check, before a model is loaded, that matplotlib is installed and that `out` can take the run.

    Args:
        out: a folder, which may be absent.
        **settings: those of ``model``, ``text``, ``steer``, ``dtype``, ``rule`` and ``seed`` that are known.

    Raises:
        PaperError: matplotlib is not installed; `out` holds other files or another run, or cannot be written.
    """
    require_matplotlib()
    check_folder(Path(out), settings)


@checked
def reproduce(
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
    """Write the paper's figures 1B, 2A, 2B, 3 and 4A to D, its tables, and a table of null baselines to a folder.

    Each part is a JSON file with all of its numbers, and a PNG and an SVG, or a Markdown table, made from that file.
    `README.md` lists them with captions that say what they show. A part that is there already is not computed again.

    Args:
        model: any decoder; the maps use its freeze rule.
        tokenizer: its tokenizer.
        text: the prompt.
        out: the folder; it is made if it is absent, but its parent folder must exist.
        name: the name of the model in the output; by default its family and size.
        steer: the phrase whose map steers the texts of table 2.
        phrases: the texts of figure 3, the first of which table 2 continues; by default the 100 of the package.
        seed: of the shuffled weights and tokens, and of a random direction to steer along.
        progress: whether to show progress bars.

    Returns:
        The path of the README.

    Raises:
        PaperError: matplotlib is not installed; `out` holds other files or another run, or cannot be written.
        PromptError: a text or phrase is empty, or is too long for the model's context.
    """
    texts = shipped_phrases() if phrases is None else list(phrases)
    if not text or not texts or not all(texts):
        raise PromptError("Prompt: expected a text, and phrases, of one token or more; found none.")
    tokenizer = require_tokenizer(tokenizer, "The paper")
    for each in (text, steer, *texts):
        model.embed(tokenizer.encode(each))
    for each in texts[: table_2.PROMPTS]:
        prompt_ids(model, tokenizer, each, table_2.NEW_TOKENS)
    settings = {
        "model": name or model_in_words(model),
        "text": text,
        "steer": steer,
        "dtype": str(model.dtype),
        "rule": model.rule,
        "seed": seed,
        "phrases": checksum("\n".join(texts).encode())[:16],
        "fingerprint": fingerprint(model)[:16],
    }
    check_output(out, **settings)
    folder = RunFolder.create(Path(out), settings)
    with write_lock(folder.path / RUN_FILE, PaperError):
        subject = Subject(model, tokenizer, text, texts, steer, seed, folder, progress)
        bar = progress_bar(PARTS, show=progress, desc="paper", unit="part")
        try:
            for part in bar:
                bar.set_postfix_str(part.name)
                if folder.read_document(part.name) is None:
                    data = json.loads(json.dumps(part.compute(subject)))
                    folder.write_document(part.name, _document(part, subject.tokens, data))
                folder.remove_progress(part.name)
        except KeyboardInterrupt as interruption:
            interruption.add_note(resume_hint("What is finished is", folder.path))
            raise
        return redraw(out)


def redraw(out: str | os.PathLike[str]) -> Path:
    """Draw the finished parts in the folder of a run again, from their JSON files alone.

    Returns:
        The path of the README.

    Raises:
        PaperError: matplotlib is not installed, or `out` holds no run or cannot be written.
    """
    require_matplotlib()
    folder = RunFolder.open(Path(out))
    listed, tokens = [], []
    for part in sorted(PARTS, key=lambda part: part.name):
        document = folder.read_document(part.name)
        if document is None:
            continue
        data, tokens = document["data"], document["tokens"]
        caption = part.caption(data)
        if part.draw is not None:
            for suffix, content in rendered(part.draw, data).items():
                folder.write_file(f"{part.name}.{suffix}", content)
        if part.markdown is not None:
            folder.write_file(f"{part.name}.md", page(part.title, caption, part.markdown(data)).encode())
        listed.append((part.name, part.title, caption, part.draw is not None))
    folder.write_file("README.md", index(folder.settings, tokens, listed).encode())
    return folder.path / "README.md"


def _document(part: Part, tokens: list[str], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": part.name,
        "title": part.title,
        "caption": part.caption(data),
        "versions": {package: version(package) for package in ("jaxlin", "jax", "flax", "numpy")},
        "tokens": tokens,
        "data": data,
    }
