"""The same prompts in transformers, if it is installed: no other part of jaxlin may import it."""

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxlin.common.errors import JaxlinError
from jaxlin.common.files import read_json
from jaxlin.common.printable import message
from jaxlin.nn.decoder import Decoder
from jaxlin.report.check.numbers import difference, logits_bar, singles
from jaxlin.report.check.results import Line, measured

NAME = "logits, against transformers"


def check_installed() -> None:
    """Check that transformers and torch are installed.

    Raises:
        JaxlinError: one of them is not installed.
    """
    missing = [name for name in ("transformers", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise JaxlinError(
            f"Check against transformers: expected transformers and torch to be installed; found no "
            f"{' and no '.join(missing)}. Install them: pip install transformers torch"
        )


def transformers_line(path: Path, model: Decoder, prompts: Int[np.ndarray, "n t"]) -> Line:
    """The largest difference between the logits of jaxlin and transformers, in float32 with eager attention.

    If transformers cannot load the file, the line neither passes nor fails.
    """
    if not model.config.has_unembedding:
        return Line(NAME, None, note="not compared: the model gives no logits")
    try:
        expected = transformers_logits(path, prompts)
    except Exception as error:  # whatever transformers raises about a file that it cannot read
        return Line(NAME, None, note=f"not compared: transformers cannot load it: {message(error)}"[:300])

    def measure() -> float:
        return max(map(difference, singles(model, prompts, every=True), expected))

    return measured(NAME, logits_bar(model.config.num_hidden_layers), measure, note="relative to the largest logit")


def transformers_logits(path: Path, prompts: Int[np.ndarray, "n t"]) -> Float[np.ndarray, "n t v"]:
    """The logits that transformers computes from the same file. No code of the checkpoint is run."""
    import torch
    import transformers

    architectures = {} if path.is_file() else read_json(path / "config.json").get("architectures")
    is_multimodal = isinstance(architectures, list) and any(
        "ForConditionalGeneration" in str(each) for each in architectures
    )
    auto = transformers.AutoModelForImageTextToText if is_multimodal else transformers.AutoModelForCausalLM
    where = {"gguf_file": path.name} if path.is_file() else {}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars and advice that a user of jaxlin does not need
        loaded: Any = auto.from_pretrained(
            path.parent if path.is_file() else path,
            **where,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"transformers finds no values for {', '.join(missing[:3])} and would draw them at random")
    with torch.no_grad():
        return np.stack([model.eval()(input_ids=torch.tensor(ids[None])).logits[0].numpy() for ids in prompts])
