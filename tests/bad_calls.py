"""Every public function, called with wrong arguments: run as a script, it prints what each call raised as JSON.

The functions are those that the documented packages list; `VALUES` has a right argument for every name of a parameter,
so that a new function is called without being listed here. One argument at a time is then wrong, and positional
arguments are in a wrong order. It is a script because in the process of the tests jaxtyping checks the types first.
"""

import importlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("MPLBACKEND", "agg")

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot

import jaxlin
from jaxlin.checkpoint import open_checkpoint
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.loading.model import SMALL
from jaxlin.nn.context import Context

FOLDER = tempfile.mkdtemp()
MODEL, TOKENIZER = jaxlin.load()
CONFIG = MODEL.config
D = CONFIG.hidden_size
X = MODEL.embed([1, 2, 3])
MAP = jaxlin.local_map(MODEL, X)
EDIT = jaxlin.activations.zero_ablation("heads")
VECTOR = jnp.ones(D)
IDENTITY = np.eye(2, dtype=np.float32)
GRADIENTS = jnp.ones((CONFIG.num_hidden_layers, CONFIG.num_attention_heads, CONFIG.head_dim))
CHECKPOINT = open_checkpoint(SMALL)
EXPLANATION = jaxlin.Explanation.__new__(jaxlin.Explanation)
CIRCUIT = jaxlin.Circuit.__new__(jaxlin.Circuit)
LENS = jaxlin.lens.JacobianLens.__new__(jaxlin.lens.JacobianLens)

VALUES: dict[str, Any] = {
    "model": MODEL,
    "x": X,
    "tokenizer": TOKENIZER,
    "target": 3,
    "position": -1,
    "edit": EDIT,
    "edits": [EDIT],
    "prompt": [1, 2, 3],
    "prompts": [list(range(1, 20)), [3]],
    "towards": [[1]],
    "away": [[2]],
    "text": "The cat",
    "other": X,
    "site": ("resid_post", 1),
    "sites": ("resid_post",),
    "kinds": ("resid_pre",),
    "kind": "resid_post",
    "depth": 2,
    "direction": VECTOR,
    "directions": VECTOR,
    "value": VECTOR,
    "a": VECTOR,
    "b": VECTOR.at[0].set(0),
    "strength": 1.0,
    "frozen": MAP.frozen,
    "u": VECTOR,
    "v": X,
    "h": VECTOR,
    "output": VECTOR,
    "lmap": MAP,
    "layer": 1,
    "token": 3,
    "head_gradients": GRADIENTS,
    "recording": None,
    "ctx": Context(),
    "draw": lambda ax: None,
    "first": [1, 2],
    "second": [3],
    "head": 0,
    "query": 2,
    "circuits": CIRCUIT,
    "function": lambda *arguments: arguments[0],
    "inputs": X,
    "rmatvec": lambda u: u,
    "shape": (3, 3, 3),
    "triplets": MAP.svd(1),
    "svd": MAP.svd(1),
    "substitutes": X,
    "heads": [(0, 0)],
    "strengths": [0.0],
    "s": X[0],
    "path": Path(FOLDER, "new"),
    "name": str(SMALL),
    "name_or_config": str(SMALL),
    "tokens": ["a"],
    "dtype": "float32",
    "lens": LENS,
    "lenses": [LENS],
    "block": 1,
    "out": None,
    "identity": "",
    "progress": False,
    "devices": 1,
    "sizes": {"heads": 2},
    "ax": pyplot.subplots()[1],
    "values": IDENTITY[0],
    "labels": ["a", "b"],
    "matrix": IDENTITY,
    "series": {"a": IDENTITY[0]},
    "rows": ["a", "b"],
    "columns": ["a", "b"],
    "edges": [],
    "y": IDENTITY[0],
    "words": [["a", "b"], ["c", "d"]],
    "module": "mlp",
    "width": 2,
    "config": MODEL.config,
    "tensor": "t",
    "folder": CHECKPOINT,
    "explanation": EXPLANATION,
    "result": None,
    "provenance": None,
    "count": 2,
    "k": 2,
    "jacobian": np.ones((D, 3, D)),
    "key": jax.random.key(0),
    "files": {},
    "source": "folder",
    "subject": "A chat",
}
"""A right argument for each name of a parameter that some function requires."""

OF_FUNCTION: dict[str, dict[str, Any]] = {
    "jaxlin.attribution.attention_scores": {"key": 1},
    "jaxlin.memory_plan": {"tokens": 3},
    "jaxlin.linearize.pull_back": {"direction": X},
    "jaxlin.linearize.target_direction": {"recording": jaxlin.linearize.record(MODEL, X), "target": jnp.int32(3)},
    "jaxlin.linearize.read_target": {"target": jnp.int32(3)},
    "jaxlin.plots.curves": {"x": IDENTITY[0]},
    "jaxlin.plots.layered_graph": {"rows": {"a": 0}},
    "jaxlin.plots.scatter": {"x": IDENTITY[0]},
    "jaxlin.plots.word_grid": {"strength": IDENTITY},
    "jaxlin.porting.part_rows": {"heads": 2, "sizes": 2},
    "jaxlin.quantized.open_quantized": {"config": ConfigReader({}, "here")},
    "jaxlin.quantized.quantized_format": {"config": ConfigReader({}, "here")},
    "jaxlin.spectrum.principal_angles": {"a": IDENTITY, "b": IDENTITY},
}
"""Those of functions that mean something else by the name."""


class Stranger:
    """An object that nothing takes."""


WRONG = {
    "text": "resid_posts",
    "empty": [],
    "ragged": [[1, 2], [3, [4]]],
    "stranger": Stranger(),
    "folder": Path(FOLDER),
}
"""An argument of each wrong kind; the text is the name of no site, model, rule, file or dtype."""

SEEN = {
    "text": ("resid_posts", "str", "text", "file", "'r'"),
    "empty": ("[]", "list", "empty", "none", "()", "(0,)", "found 0", "and 0.", "void"),
    "ragged": ("[4]", "list", "[1, 2]", "found 1", "found 2"),
    "stranger": ("Stranger",),
    "folder": (FOLDER, "PosixPath"),
}
"""What a message says that was found, one of these, so that it is about this argument and no other."""

ANYTHING = {"result", "provenance"}
"""Parameters that take any value."""

NOTED = {"jaxlin.results.traced_to": {"x", "tokenizer", "rule"}}
"""Parameters of functions that only take down what an analysis has checked."""

MEANT = {
    "empty": {"edits", "heads", "stop_token_ids", "ignore_config_keys", "single_tokens", "edges", "layers", "tokens"}
    | {"positions", "kinds", "added", "constants", "inputs", "ids", "source_layers", "labels", "words", "shards"},
    "folder": {"name", "name_or_config", "path"},
}
"""Parameters for which the argument is right: an empty list means none of them, and a model can be a folder."""


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions that documented packages list, each once."""
    seen = set()
    for page in sorted(Path(__file__).parents[1].glob("docs/api/*.md")):
        if page.stem != "index":
            name = "jaxlin" if page.stem == "jaxlin" else f"jaxlin.{page.stem}"
            package = importlib.import_module(name)
            for each in package.__all__:
                function = getattr(package, each)
                if inspect.isfunction(function) and function not in seen:
                    seen.add(function)
                    yield f"{name}.{each}", function


def takes_text(annotation: Any) -> bool:
    """Whether any text is right."""
    return annotation is str or any(takes_text(each) for each in get_args(annotation) if not isinstance(each, str))


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function that have a name."""
    parameters = inspect.signature(function).parameters.values()
    return [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]


def right_arguments(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that a function requires."""
    values = VALUES | OF_FUNCTION.get(name, {})
    return {each.name: values[each.name] for each in parameters_of(function) if each.default is each.empty}


def wrong_arguments(parameter: inspect.Parameter) -> Iterator[tuple[str, Any]]:
    """The wrong arguments for one parameter."""
    for kind, value in WRONG.items():
        is_right = kind == "text" and takes_text(parameter.annotation)
        if parameter.name not in ANYTHING | MEANT.get(kind, set()) and not is_right:
            yield kind, value


def calls(name: str, function: Callable[..., Any]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """What is wrong, its kind, and the call."""
    right, parameters = right_arguments(name, function), parameters_of(function)
    for parameter in parameters:
        for kind, value in wrong_arguments(parameter) if parameter.name not in NOTED.get(name, ()) else ():
            arguments = right | {parameter.name: value}
            yield f"{parameter.name}={kind}", kind, lambda arguments=arguments: function(**arguments)
    first = [each.name for each in parameters if each.name in right and each.kind is not each.KEYWORD_ONLY]
    positional, others = [right[each] for each in first], {each: right[each] for each in right if each not in first}
    for order in {(len(first) - 1, *range(len(first) - 1)), (1, 0, *range(2, len(first)))} if len(first) > 1 else ():
        turned = [positional[index] for index in order]
        if any(type(one) is not type(other) for one, other in zip(turned, positional, strict=True)):
            yield f"order {order}", "order", lambda turned=turned: function(*turned, **others)


def traced_calls(name: str, function: Callable[..., Any]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Calls in which one argument is traced, whose programs are not compiled."""
    right = right_arguments(name, function)
    for each, value in right.items():
        if isinstance(value, jax.Array | np.ndarray) or each in ("model", "prompts", "other"):
            dynamic = [X] if each == "prompts" else value

            def call(each: str = each, dynamic: Any = dynamic) -> Any:
                return jax.eval_shape(lambda traced: (function(**right | {each: traced}), 0)[1], dynamic)

            yield f"{each}=traced", "traced", call


def outcome(kind: str, call: Callable[[], Any]) -> str | None:
    """What a call raised, if it was not jaxlin's error of one line that says what was expected and what was found."""
    try:
        call()
    except jaxlin.JaxlinError as error:
        message = str(error)
        is_whole = "\n" not in message and "expected" in message.lower() and message.endswith(".")
        is_about_it = kind not in SEEN or any(each in message for each in SEEN[kind])
        return None if is_whole and is_about_it else f"unclear: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return None if kind == "traced" else "no error"


def main() -> None:
    """Print what was called, and the calls that raised anything else."""
    names, faults = [], {}
    for name, function in public_functions():
        names.append(name)
        try:
            each_call = [*calls(name, function), *traced_calls(name, function)]
        except KeyError as missing:
            faults[name] = f"VALUES has no right argument {missing}"
            continue
        for wrong, kind, call in each_call:
            if fault := outcome(kind, call):
                faults[f"{name}({wrong})"] = fault
    print(json.dumps({"functions": names, "faults": faults}))


if __name__ == "__main__":
    main()
