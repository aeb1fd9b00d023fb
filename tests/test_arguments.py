"""Wrong arguments give one message, which says what was expected, what was found and what to do."""

import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlin
from jaxlin.steering.samplers import SamplingError, make_sampling

WRONG = {
    "explain(t, m, 'a')": "a model, as jaxlin.load gives, as the first argument; found a Tokenizer",
    "generate(t, m, 'a')": "as the first argument",
    "local_map(x, m)": "as the first argument; found an array of float32 of shape (3, 192)",
    "attribute(x, m, 3)": "as the first argument",
    "freeze(x, m)": "as the first argument",
    "replay(freeze(m, x), m, x)": "as the first argument; found a FrozenFactors",
    "dose_curve(t, m, None, ['a'], 3, [0.0])": "as the first argument",
    "lens.fit([[1, 2]], m)": "as the first argument; found [[1, 2]]",
    "lens.exact(x, m)": "as the first argument",
    "lens.read(x, m, None)": "as the first argument",
    "causal.deletion(x, m, 3)": "as the first argument",
    "causal.removal(x, m, None, 3)": "as the first argument",
    "causal.validity(x, m, [])": "as the first argument",
    "causal.activation_patching(x, m, x, 3)": "as the first argument",
    "causal.head_ablation(x, m, 3)": "as the first argument",
    "causal.edge_ablation(x, m, None, 3, [])": "as the first argument",
    "stream_contributions(x, m, 3)": "as the first argument",
    "steering.edited(x, m, [])": "as the first argument",
    "steering.token_direction(3, m)": "as the first argument; found 3",
    "explain(m, x, 'a')": "a tokenizer, as jaxlin.load gives beside the model, as the second argument",
    "generate(m, m, 'a')": "as the second argument; found a",
    "m.embed([[1, 2], [3]])": "not of lists; found [[1, 2], [3]]",
    "m.unembed('a')": "unembed, h: expected an array of floats of shape (*b, d), as the first argument",
    "m.unembed(m)": "as the first argument; found a",
    "m.unembed(m(x)[:, :3])": "points after the final norm, an array [..., 192]; found one of shape [3, 3]",
    "m.unembed(x[0], ids='a')": "unembed, ids: expected",
    "record(m, x, ('resid_posts',))": "found ('resid_posts',)",
    "record(m, x, 'resid_post')": "found 'resid_post'",
    "explain(m, t, 'a', target='the', over='the')": "expected another word than the target; found ' the' for both",
    "attribute(m, x, (3, 3))": "two different tokens; found 3 twice",
    "generate(m, t, 'a', temperature=1.0, top_p=1.4)": "a probability, above 0 and at most 1; found 1.4",
    "generate(m, t, 'a', temperature=1.0, top_p='x')": "found 'x'",
    "generate(m, t, 'a', temperature=1.0, top_k=1.5)": "top_k: expected an integer; found 1.5",
    "generate(m, t, 'a', temperature=float('nan'))": "Temperature: expected 0 (the likeliest token) or more; found nan",
    "generate(m, t, 'a', temperature='hot')": "found 'hot'",
    "local_map(m, x.at[1, 5].set(np.nan))": "expected finite numbers; found NaN or infinity at position 1",
    "attribute(m, x.at[2:].set(-np.inf), 3)": "found NaN or infinity at position 2",
    "lens.exact(m, x * np.nan)": "found NaN or infinity at position 0",
    "m(x.at[1].set(np.inf))": "found NaN or infinity at position 1",
    "local_map(m, x.astype('float16'))": "expected float32, what this model computes in; found float16, in which",
    "m(x.astype('bfloat16'))": 'Widen them: x.astype("float32")',
    "local_map(m, x).svd(k=1.5)": "expected k in 1..192, the largest rank this map can have; found 1.5",
    "local_map(m, x).svd(k='2')": "found '2'",
    "local_map(m, x).svd(k=True)": "found True",
    "local_map(m, x).svd(tol='x')": "a tolerance between 0 and 1, of each value relative; found 'x'",
    "local_map(m, x).svd(2, method='krylov', tol=np.inf)": "found inf",
    "local_map(m, x).svd(tol=0)": "found 0",
    "local_map(m, x).svd(seed='x')": "a seed that is an integer of 0 or more; found 'x'",
    "local_map(m, x).svd(method=3)": "the method auto, dense or krylov; found 3",
    "local_map(m, x).jacobian(block='2')": "block: expected an integer; found '2'",
    "local_map(m, x).jacobian(block=1.5)": "found 1.5",
    "local_map(m, x).jacobian(out=5)": "the path of a .npy file; found 5",
    "local_map(m, x).residual_of(np.eye(3))": "a dense map of shape (192, 3, 192); found (3, 3)",
    "local_map(m, x) @ 'a'": "an array of numbers; found 'a'",
    "local_map(m, x).T @ None": "an array of numbers; found None",
    "local_map(m, x) @ [['a']]": "an array of numbers; found [['a']]",
    "spectrum.svd(np.ones((3, 2, 2)), k=1.5)": "k in 1..3",
    "ranks.map_ranks(local_map(m, x), memory='a')": "map_ranks, memory: expected an integer; found 'a'",
    "attention_scores(x, m, 1, 0, 2, 1)": "as the first argument; found a",
    "attention_scores(m, x, 1, 'a', 2, 1)": "head: expected an integer, as the fourth argument; found 'a'",
    "attention_scores(m, x, 1, 0, 2, 1.0)": "key: expected an integer, as the sixth argument; found 1.0",
    "attention_scores(m, x, 1, 0, 2, 1, tokens=3)": "tokens: expected True or False; found 3",
    "attention_scores(m, x, 1, 0, 2, 1, rule='both')": "Rule: expected one of",
    "attention_scores(m, x, 1, 0, 2, 1).minus(3)": "Difference: expected attention scores; found an int",
    "attention_scores(m, x, 1, 0, 2, 1).plot(by='word')": "Table: expected one of component, token; found 'word'",
    "attribute_batch(m, 'The cat', 3)": "expected a list, as the second argument; found 'The cat'. Put it in a list.",
    "generate_batch(m, t, 'The cat')": "expected a list, as the third argument; found 'The cat'. Put it in a list.",
    "generate(m, t, 'The', edits=steering.zero_ablation('heads'))": "found a Replace. Put it in a list.",
    "steering.edited(m, x, steering.add('final', x[0]))": "found an Add. Put it in a list.",
    "dose_curve(m, t, steering.zero_ablation('heads'), ['The'], 'cat', 0.5)": "found 0.5. Put it in a list.",
    "steering.mean_ablation(m, ['The cat'], 'v')": "[0]: expected a list; found 'The cat'. tokenizer.encode(text)",
    "steering.mean_ablation(m, 'The cat', 'v')": "found 'The cat'. tokenizer.encode(text) gives token ids.",
    "steering.mean_ablation(m, [1, 2], 'v')": "[0]: expected a list; found 1. Put one prompt in a list too.",
    "explain(m, t, ['The cat'])": "[0]: expected an integer; found 'The cat'. tokenizer.encode(text)",
    "explain(m, t, x)": "an array with an integer in each place, as the third argument; found an array",
    "attribute(m, 'The cat', 3)": "found a str. tokenizer.encode(text) gives the ids of a text.",
    "lens.read(m, x, tokens=' he')": "found ' he'. tokenizer.to_single_token(word) gives the id of a word.",
    "lens.fit(m, ['The cat'])": "each a list of token ids, as tokenizer.encode(text) gives; found ['The cat'].",
    "steering.token_direction(m, ' cat')": "found ' cat'. tokenizer.to_single_token(word) gives the id of a word.",
    "load(5)": "expected a hub id, a directory or a .gguf file; found 5",
    "load(['a'])": "found ['a']",
    "load(revision=5)": "the name of a branch, tag or commit; found 5",
}
"""Calls with a model `m`, its tokenizer `t` and embeddings `x`, and a part of the message of each."""

SCRIPT = """
import json, sys
import jaxlin
import numpy as np
from jaxlin import *
from jaxlin import causal, lens, steering
from jaxlin.linearize.linalg import triplets as spectrum
from jaxlin.spectrum import prediction_ranks as ranks
from jaxlin.linearize.frozen import record
from jaxlin.attribution.layer_streams import stream_contributions
m, t = jaxlin.load()
x, messages = m.embed([1, 2, 3]), {}
for call in json.load(sys.stdin):
    try:
        eval(call)
    except Exception as error:
        messages[call] = [isinstance(error, jaxlin.JaxlinError), f"{type(error).__name__}: {error}"]
print(json.dumps(messages))
"""


def test_messages() -> None:
    """The calls run in a process of their own, because in this one jaxtyping checks the types first."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(list(WRONG)), capture_output=True, text=True, check=True
    )
    messages = json.loads(run.stdout)
    assert messages.keys() == WRONG.keys()
    for call, (is_jaxlin_error, message) in messages.items():
        assert is_jaxlin_error, (call, message)
        assert WRONG[call] in message


def test_numbers_of_numpy_and_jax_are_numbers() -> None:
    for one in (1, 0.5, np.float32(0.5), np.float64(0.5), jnp.float32(0.5)):
        assert make_sampling(10, one, np.int64(3), one) is not None
    for none in ("1", True, [1.0], math.inf, 1j, 10**400):
        with pytest.raises(SamplingError, match="Temperature: expected 0"):
            make_sampling(10, none, None, None)


PIECES = {"Gradients", "Recording", "TargetDirection"}
"""Tuples that an analysis takes apart within `jax.jit`, and that are no results."""


def results() -> list[type]:
    """The classes with arrays in them that a package offers its users; `Generation` is compared by value, see below."""
    packages = [module for _, module, is_package in pkgutil.walk_packages(jaxlin.__path__, "jaxlin.") if is_package]
    offered = {
        (name, each)
        for package in map(importlib.import_module, packages)
        for name in getattr(package, "__all__", ())
        if inspect.isclass(each := getattr(package, name)) and each is not jaxlin.Generation
    }
    return [
        each
        for _, each in sorted(offered, key=lambda pair: pair[0])
        if (dataclasses.is_dataclass(each) or hasattr(each, "_fields"))
        and each.__name__ not in PIECES
        and any("Array" in str(kind) or "ndarray" in str(kind) for kind in inspect.get_annotations(each).values())
    ]


@pytest.mark.parametrize("each", results(), ids=lambda each: each.__name__)
def test_results_can_be_compared(each: type) -> None:
    """The comparison that Python generates for a dataclass raises an error of NumPy where a field is an array."""
    fields = [f.name for f in dataclasses.fields(each)] if dataclasses.is_dataclass(each) else each._fields
    tuples = hasattr(each, "_fields")
    one, two = (each.__new__(each, *[np.arange(3.0)] * len(fields)) if tuples else each.__new__(each) for _ in "ab")
    for result in () if tuples else (one, two):
        for name in fields:
            object.__setattr__(result, name, np.arange(3.0))
    assert one == one
    assert (one == two) in (True, False)
    assert (one != two) is not (one == two)


def test_texts_are_compared_by_value() -> None:
    model, tokenizer = jaxlin.load()
    one, two = (jaxlin.generate(model, tokenizer, "The", 4, return_logits=True) for _ in range(2))
    assert one == two
    other = dataclasses.replace(one, logits=one.logits + 1)
    assert one != other
    assert one != dataclasses.replace(one, tokens=[])
    assert one != "The"
