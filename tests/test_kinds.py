"""Each type of model under every analysis: maps, sums, lenses, causal checks, steering and the memory plan.

`test_parity` holds the logits and rows of every variant to transformers, and `steering/test_generation` continues a
text with each. Here one variant or two of each type, with the parts that only it has, pass through what is built on the
map.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
import torch
import transformers
from kinds import KINDS, WRAPPERS
from safetensors.numpy import load_file, save_file

import jaxlin
from jaxlin.attribution import experts, stream_contributions
from jaxlin.causal import activation_patching, head_ablation
from jaxlin.lens import exact
from jaxlin.linearize.frozen import record
from jaxlin.linearize.operator import LocalMap
from jaxlin.linearize.residuals import MAX_DIRECTIONS
from jaxlin.loading.shapes import shapes_of
from jaxlin.nn import freeze_rules
from jaxlin.nn.sites import InnerSite
from jaxlin.steering import add, edited

# `test_parity`, `test_proofs` and `test_generation` check the annotations in each type, and each analysis has tests of
# its own.
pytestmark = pytest.mark.usefixtures("without_annotation_checks")

CACHES = (
    "gemma2",
    "phi",
    "gpt_oss, clipped",
    "llama4_text, interleaved",
    "mistral4",
    "qwen3_5_text, interval",
    "gemma3n_text",
    "gemma4_text, per layer",
)
"""Types with a cache, or a block, of another kind than those of the others."""

BODIES, HEADS = ("model.language_model.", "language_model.model."), ("lm_head.weight", "language_model.lm_head.weight")

UNGATED = ("phi", "gpt2", "gpt_neox")
"""Types whose MLPs have one branch, so that all rules are one: `test_rules_without_a_gate`."""

RULES = [(name, rule) for name in KINDS if name not in UNGATED for rule in ("up", "half")]

POSITION, TOKEN = 11, 9


class Loaded(NamedTuple):
    """A model in float64, and its prompt."""

    folder: Path
    model: Any
    tokenizer: Any
    x: Any


@pytest.fixture(scope="module", autouse=True)
def in_64_bits() -> Iterator[None]:
    """64-bit mode for the whole file, so that its programs are compiled once."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(autouse=True)
def forget_programs_in_time() -> Iterator[None]:
    """Drop what is compiled before it is too much: see `forget_programs`. The programs of this file alone would be."""
    yield
    if Path("/proc/self/maps").read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="module")
def loaded(checkpoint: Callable[[str], Path]) -> Callable[[str], Loaded]:
    """The model of a variant, which only the first test of it loads."""

    @functools.cache
    def load(name: str) -> Loaded:
        model, tokenizer = jaxlin.load(checkpoint(name), linearize=True, dtype="float64")
        return Loaded(checkpoint(name), model, tokenizer, model.embed(tiny.IDS))

    return load


def close(ours: Any, expected: Any, relative: float = 1e-12) -> None:
    """Equal to rounding, relative to the largest number."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=relative * np.abs(expected).max())


@jax.jit
def pull(model: jaxlin.Decoder, x: Any, u: Any) -> Any:
    """Rows of the Jacobian of a model in which factors are constants to differentiation."""
    return jax.vmap(jax.vjp(lambda x: model(x)[POSITION], x)[1])(u)[0]


@pytest.mark.parametrize(("name", "rule"), RULES)
def test_rows_are_those_of_the_linearized_model(name: str, rule: str, loaded: Callable[[str], Loaded]) -> None:
    """Under the other rules too the map reconstructs, and its rows are what `jax.jacrev` gives.

    Under "gate", `test_parity` compares the rows with transformers and `test_proofs` corrupts each factor.
    """
    _, model, _, x = loaded(name)
    lmap = jaxlin.local_map(model, x, position=POSITION, rule=rule)
    assert lmap.residual <= 1e-13
    if rule == "up":
        return  # each row under "half" has one half of its paths through this branch
    u = np.random.default_rng(0).normal(size=(MAX_DIRECTIONS, lmap.shape[0]))
    model = jax.tree.map(lambda a: a, model)
    model.rule = rule
    close(lmap.T @ u, pull(model, x, u))


@pytest.mark.parametrize("name", UNGATED)
def test_rules_without_a_gate(name: str, loaded: Callable[[str], Loaded]) -> None:
    """The program that computes the map is the same under every rule."""
    _, model, _, x = loaded(name)
    programs = (jax.make_jaxpr(functools.partial(jaxlin.local_map, rule=rule))(model, x) for rule in freeze_rules.RULES)
    assert len({re.sub("0x[0-9a-f]+", "", str(program)) for program in programs}) == 1


@pytest.mark.parametrize("name", KINDS)
def test_sums(name: str, loaded: Callable[[str], Loaded]) -> None:
    """Tokens and parts each sum to the logit, heads and neurons to their layers, and sources to their heads."""
    folder, model, _, x = loaded(name)
    kind = (InnerSite.NEURONS,)
    sites = jax.eval_shape(lambda x: record(model, x, kind, position=0).sites, x)
    neurons = sum(math.prod(site.shape) for site in jax.tree.leaves(sites))
    parts = jaxlin.attribute(model, x, TOKEN, position=POSITION, sources=True, neurons=neurons)
    assert max(parts.defect, parts.component_defect) <= 1e-12
    close(parts.value, oracle.logits(folder, tiny.IDS, torch.float64)[POSITION, TOKEN], 1e-10)
    close(np.nansum(parts.heads, axis=1) + parts.attn_bias, parts.attn)  # NaN where a layer has fewer heads
    close(np.nan_to_num(parts.sources.sum(2)), np.nan_to_num(parts.heads))
    np.testing.assert_array_equal(np.isnan(parts.sources).all(2), np.isnan(parts.heads))
    assert not np.nan_to_num(parts.sources[:, :, POSITION + 1 :]).any()
    by_layer = np.bincount(parts.neurons.layer, parts.neurons.contribution, model.config.num_hidden_layers)
    close(by_layer + parts.mlp_bias, parts.mlp)

    if (chosen := parts.experts) is not None:
        shared = 0 if chosen.shared is None else chosen.shared
        close(chosen.contribution.sum(1) + shared + chosen.bias, parts.mlp[chosen.layer])
        by_token = experts(model, x, TOKEN, position=POSITION)
        assert by_token.defect <= 1e-12
        np.testing.assert_array_equal(by_token.experts.index[:, POSITION], chosen.index)

    streams = stream_contributions(model, x, TOKEN, position=POSITION)
    assert streams.defect <= 1e-12
    close(streams.tokens[0], parts.tokens)
    lens = exact(model, x, position=POSITION)
    assert lens.defect <= 1e-12
    at_token = jax.vjp(lambda h: model.unembed(h)[TOKEN], jnp.asarray(lens.output))[1](jnp.ones(()))[0]
    if model.config.final_logit_softcapping is None:
        close(lens.parts @ np.asarray(at_token), streams.tokens)


def mixers(model: Any) -> list[torch.nn.Module]:
    """The modules that mix the heads of each layer: what goes into one are the heads, side by side."""
    names = ("o_proj", "dense", "out_proj", "attn.c_proj")
    mixing = ("attn", "attention")
    return [module for name, module in model.named_modules() if name.endswith(names) and any(m in name for m in mixing)]


@pytest.mark.parametrize("name", KINDS)
def test_heads_taken_away(name: str, loaded: Callable[[str], Loaded]) -> None:
    """Against transformers, with what goes into the output projection of one layer set to zero by hand."""
    folder, model, _, x = loaded(name)
    ablation = head_ablation(model, x, TOKEN, position=POSITION, progress=False)
    reference, counts = oracle.load(folder, torch.float64), np.isfinite(ablation.direct).sum(1)

    def zeroed(z: torch.Tensor, head: int, heads: int) -> torch.Tensor:
        parts = z.reshape(*z.shape[:2], heads, -1).clone()
        parts[:, :, head] = 0
        return parts.reshape(z.shape)

    with torch.no_grad(), oracle.lifted(reference):
        for layer, head in ((0, 1), (len(counts) - 1, counts[-1] - 1)):
            change = functools.partial(zeroed, head=head, heads=counts[layer])
            hook = mixers(reference)[layer].register_forward_pre_hook(lambda m, i, change=change: (change(i[0]),))
            value = float(reference(input_ids=torch.tensor([tiny.IDS])).logits[0, POSITION, TOKEN])
            hook.remove()
            np.testing.assert_allclose(ablation.effects[layer, head], ablation.value - value, atol=1e-10)


def embedding_patched(folder: Path, other: list[int], token: int) -> float:
    """The logit in transformers with one embedding of another prompt, and all per-layer inputs of the prompt itself."""
    model = oracle.load(folder, torch.float64)
    text = next(module for module in model.modules() if hasattr(module, "project_per_layer_inputs"))
    with torch.no_grad(), oracle.lifted(model):
        leaves, others = oracle.inputs(model, tiny.IDS), oracle.inputs(model, other)
        own = text.project_per_layer_inputs(*leaves.values())
        text.project_per_layer_inputs = lambda *args: own
        leaves["inputs_embeds"] = leaves["inputs_embeds"].clone()
        leaves["inputs_embeds"][0, token] = others["inputs_embeds"][0, token]
        return float(model(**leaves).logits[0, POSITION, TOKEN])


@pytest.mark.parametrize("name", KINDS)
def test_patches(name: str, loaded: Callable[[str], Loaded]) -> None:
    """An embedding from another prompt is that prompt's token. Per-layer inputs are no part of it, and remain."""
    folder, model, _, x = loaded(name)
    other = [*tiny.IDS[:3], 44, *tiny.IDS[4:]]
    patching = activation_patching(model, x, model.embed(other), TOKEN, position=POSITION, progress=False)
    patched = embedding_patched(folder, other, 3) if model.reads_ids else patching.other
    close(patching.effects[0, 3], patched - patching.value, 1e-10 if model.reads_ids else 1e-11)


@pytest.mark.parametrize("name", CACHES)
def test_edits(name: str, loaded: Callable[[str], Loaded]) -> None:
    """An edit in a cached text is one without a cache."""
    _, model, tokenizer, x = loaded(name)
    direction = np.random.default_rng(1).normal(size=x.shape[1])
    edit = add(("resid_post", 1), direction / np.linalg.norm(direction), 2.0)
    text = jaxlin.generate(model, tokenizer, tiny.IDS, 8, stop_token_ids=(), edits=[edit], return_logits=True)
    assert text.logits is not None
    whole = model.unembed(edited(model, model.embed(tiny.IDS + text.tokens), [edit], prompt=len(tiny.IDS)))
    close(text.logits, whole[len(tiny.IDS) - 1 : -1])
    assert np.abs(text.logits[0] - model.unembed(model(x)[-1])).max() > 1e-2


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("uncompiled_plans")
def test_memory_plan(name: str, loaded: Callable[[str], Loaded]) -> None:
    """Weights and frozen factors to the byte, with headers and from the config alone."""
    folder, model, _, x = loaded(name)
    lmap = jax.eval_shape(jaxlin.local_map, model, x)
    for source in (folder, json.loads((folder / "config.json").read_text())):
        planned = jaxlin.memory_plan(source, tokens=len(x), dtype="float64")
        assert planned.weights == sum(leaf.nbytes for leaf in jax.tree.leaves(model))
        assert planned.frozen == sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(lmap.frozen))


@pytest.mark.parametrize("name", KINDS)
def test_temporary_memory_does_not_grow_with_depth(name: str) -> None:
    """Rows of a map twice as deep take no more beside the weights: no layer's are copied or unpacked for all.

    The shallower map has its layers twice over, so that both repeat the same period of unlike layers.
    """
    variant = tiny.VARIANTS[name]
    text = variant.options.get("text_config", variant.options)
    depth = text["num_hidden_layers"]

    def temporary(times: int) -> int:
        by_layer = {k: v * times for k, v in text.items() if isinstance(v, list) and len(v) == depth}
        deep = {**text, **by_layer, "num_hidden_layers": times * depth}
        options = {**variant.options, "text_config": deep} if text is not variant.options else deep
        config = json.loads(getattr(transformers, variant.config)(**options).to_json_string())
        model = shapes_of(config, None, "float64", "gate")
        lmap = jax.eval_shape(lambda model: jaxlin.local_map(model, model.embed(tiny.IDS)), model)
        assert model.config.num_hidden_layers == times * depth
        u = jax.ShapeDtypeStruct(lmap.shape[:1] * 2, jnp.float64)
        analysis: Any = jax.jit(LocalMap.rmatvec).lower(lmap, u).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporary(4) <= 1.1 * temporary(2)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_its_text_model(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The same config and the same parameters, and so all of the above."""
    config = json.loads((checkpoint(name) / "config.json").read_text())
    tied = config.get("tie_word_embeddings", config["text_config"].get("tie_word_embeddings"))
    tensors = {}
    for tensor, values in load_file(checkpoint(name) / "model.safetensors").items():
        if body := next(filter(tensor.startswith, BODIES), ""):
            tensors["model." + tensor.removeprefix(body)] = values
        elif tensor in HEADS:
            tensors["lm_head.weight"] = values
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({**config["text_config"], "tie_word_embeddings": tied}))
    (wrapped, _), (text, _) = jaxlin.load(checkpoint(name)), jaxlin.load(tmp_path)
    assert wrapped.config == text.config
    assert type(wrapped) is type(text)
    jax.tree.map(np.testing.assert_array_equal, wrapped, text)
