"""Exact attribution: on every family, both lists sum to the value; heads and neurons against transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
import torch

import jaxlin
from jaxlin.attribution.components import contributions
from jaxlin.common.errors import TokenizerError
from jaxlin.nn.sites import SiteError
from jaxlin.steering.directions import token_direction

Checkpoint = Callable[[str], Path]
FAMILIES = [
    "llama, MQA", "llama, biases", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3, tied", "phi3, longrope, short",
    "phi, qk_layernorm", "mistral, window", "ministral3", "olmo, clip_qkv", "olmo2", "olmo3",
]  # fmt: skip
POSITION = 11


def all_neurons(model: jaxlin.Decoder) -> int:
    """How many there are."""
    return model.config.num_hidden_layers * model.config.intermediate_size


def table(model: jaxlin.Decoder, found: jaxlin.Attribution) -> np.ndarray:
    """The neurons of an attribution that names them all, [layers, f]."""
    contributions = np.full((model.config.num_hidden_layers, model.config.intermediate_size), np.nan)
    contributions[found.neurons.layer, found.neurons.index] = found.neurons.contribution
    return contributions


def check_sums(model: jaxlin.Decoder, found: jaxlin.Attribution, tolerance: float) -> None:
    """Every list sums to what it explains."""
    assert found.defect <= tolerance
    assert found.component_defect <= tolerance
    size = max(np.abs(found.attn).max(), np.abs(found.mlp).max(), abs(found.value))
    over_input = found.tokens.astype(np.float64).sum() + found.bias
    np.testing.assert_allclose(over_input, found.value, atol=tolerance * max(size, np.abs(found.tokens).max()))
    over_model = found.embed + found.attn.astype(np.float64).sum() + found.mlp.sum() + found.final_bias
    np.testing.assert_allclose(over_model, found.value, atol=tolerance * size)
    np.testing.assert_allclose(found.heads.sum(axis=1) + found.attn_bias, found.attn, atol=tolerance * size)
    np.testing.assert_allclose(table(model, found).sum(axis=1) + found.mlp_bias, found.mlp, atol=tolerance * size)
    assert found.sources is not None
    np.testing.assert_allclose(found.sources.sum(axis=2), found.heads, atol=tolerance * size)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_list_sums_to_the_value(name: str, checkpoint: Checkpoint, x64: None) -> None:
    values = []
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        model, _ = jaxlin.load(checkpoint(name), dtype=dtype)
        x = model.embed(tiny.IDS)
        found = jaxlin.attribute(model, x, (9, 11), position=POSITION, neurons=all_neurons(model), sources=True)
        check_sums(model, found, tolerance)
        assert found.heads.shape == (model.config.num_hidden_layers, model.config.num_attention_heads)
        assert found.sources is not None
        assert found.sources.shape == (*found.heads.shape, len(tiny.IDS))
        assert not found.tokens[POSITION + 1 :].any()
        assert not found.sources[..., POSITION + 1 :].any()
        values.append([found.value, found.bias, *found.tokens, *found.attn, *found.heads.flat, *found.sources.flat])
    np.testing.assert_allclose(*values, atol=1e-4)
    biased = "phi" in name and "phi3" not in name
    assert bool(found.final_bias) == biased
    assert bool(np.all(found.attn_bias)) == (biased or name == "llama, biases")
    assert bool(np.all(found.mlp_bias)) == (biased or name == "llama, biases")
    assert bool(found.bias) == (biased or name in ("llama, biases", "qwen2"))
    assert len(found.attn) == len(found.mlp) == model.config.num_hidden_layers


def test_the_rule_moves_tokens_and_nothing_else(checkpoint: Checkpoint, x64: None) -> None:
    model, _ = jaxlin.load(checkpoint("llama, biases"), dtype="float64")
    x, most = model.embed(tiny.IDS), all_neurons(model)
    gate, up, half = (
        jaxlin.attribute(model, x, 9, rule=rule, neurons=most, sources=True) for rule in ("gate", "up", "half")
    )
    for other in (up, half):
        check_sums(model, other, 1e-12)
        assert np.abs(gate.tokens - other.tokens).max() > 1e-3
        np.testing.assert_allclose(gate.heads, other.heads, atol=1e-12)
        np.testing.assert_allclose(gate.sources, other.sources, atol=1e-12)
        np.testing.assert_allclose(table(model, gate), table(model, other), atol=1e-12)


def test_targets_and_positions(checkpoint: Checkpoint, x64: None) -> None:
    model, _ = jaxlin.load(checkpoint("gemma3_text"), dtype="float64")
    x = model.embed(tiny.IDS)
    states = np.asarray(jax.jit(lambda model, x: model(x))(model, x))
    u = np.linspace(-1, 1, 64)
    for position in (0, -1):
        found = jaxlin.attribute(model, x, u, position=position, neurons=all_neurons(model), sources=True)
        np.testing.assert_allclose(found.value, u @ states[position], rtol=1e-12)
        check_sums(model, found, 1e-12)
    # No softcap here: a difference of logits is the difference of their attributions.
    nine, eleven, both = (jaxlin.attribute(model, x, target, position=-1, neurons=0) for target in (9, 11, (9, 11)))
    for field in ("value", "tokens", "embed", "attn", "mlp", "heads"):
        difference = getattr(nine, field) - getattr(eleven, field)
        np.testing.assert_allclose(getattr(both, field), difference, atol=1e-11)
    assert nine.neurons.contribution.shape == (0,)


@pytest.mark.parametrize("name", ["llama, biases", "gemma2", "phi", "olmo2"])
def test_against_transformers(name: str, checkpoint: Checkpoint, x64: None) -> None:
    """Heads and neurons from what transformers' own modules take in and give out, norms scaled by hand."""
    folder, token = checkpoint(name), 9
    model, _ = jaxlin.load(folder, dtype="float64")
    x, most = model.embed(tiny.IDS), all_neurons(model)
    found = jaxlin.attribute(model, x, token, position=POSITION, neurons=most, sources=True)
    expected = by_hooks(folder, token, model.config.num_attention_heads)
    np.testing.assert_allclose(found.value, expected["value"], atol=1e-11)
    for field in ("embed", "attn", "mlp", "heads", "sources"):
        np.testing.assert_allclose(getattr(found, field), expected[field], atol=1e-11, err_msg=field)
    np.testing.assert_allclose(table(model, found), expected["neurons"], atol=1e-11)


def by_hooks(folder: Path, token: int, heads: int) -> dict[str, Any]:
    """What is added to the stream at `POSITION`, through the final norm's scale, in transformers' float64 model."""
    hf = oracle.load(folder, torch.float64)
    seen: dict[torch.nn.Module, tuple[np.ndarray, np.ndarray]] = {}
    values: list[np.ndarray] = []

    def see(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        seen[module] = inputs[0][0, POSITION].numpy(), output[0, POSITION].numpy()

    for name, module in hf.named_modules():
        if name.endswith(("o_proj", "dense", "down_proj", "fc2", "norm", "layernorm", "embed_tokens")):
            module.register_forward_hook(lambda m, i, o: see(m, i, o) if o.ndim == 3 else None)
        if name.endswith("v_proj"):
            module.register_forward_hook(lambda m, i, o: values.append(o[0].numpy()))
    with torch.no_grad(), oracle.lifted(hf):
        output = hf(input_ids=torch.tensor([tiny.IDS]), output_attentions=True)
    logits = output.logits[0, POSITION].numpy()
    base = hf.base_model
    final = base.final_layernorm if hasattr(base, "final_layernorm") else base.norm

    def array(parameter: Any) -> np.ndarray:
        return parameter.detach().numpy()

    def scaled(norm: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
        """The linear part of a norm, held at what it took in."""
        x, weight = seen[norm][0], array(norm.weight)
        if isinstance(norm, torch.nn.LayerNorm):
            return (rows - rows.mean(-1, keepdims=True)) / np.sqrt(x.var() + norm.eps) * weight
        if "Gemma" in type(norm).__name__:
            return rows / np.sqrt((x**2).mean() + norm.eps) * (1 + weight)
        return rows / np.sqrt((x**2).mean() + norm.variance_epsilon) * weight

    raw = array(hf.lm_head.weight)[token] @ seen[final][1]
    raw += 0 if hf.lm_head.bias is None else array(hf.lm_head.bias)[token]
    u = array(hf.lm_head.weight)[token] * logits[token] / raw

    def read(rows: np.ndarray, after: torch.nn.Module | None = None) -> np.ndarray:
        return scaled(final, rows if after is None else scaled(after, rows)) @ u

    out: dict[str, Any] = {"value": logits[token], "attn": [], "mlp": [], "heads": [], "neurons": [], "sources": []}
    for layer, v, attention in zip(base.layers, values, output.attentions, strict=True):
        post = "post_feedforward_layernorm"
        norms = (layer.post_attention_layernorm, getattr(layer, post)) if hasattr(layer, post) else (None, None)
        mixer = layer.self_attn.dense if hasattr(layer.self_attn, "dense") else layer.self_attn.o_proj
        last = layer.mlp.fc2 if hasattr(layer.mlp, "fc2") else layer.mlp.down_proj
        for kind, parts, module, norm in (("attn", "heads", mixer, norms[0]), ("mlp", "neurons", last, norms[1])):
            columns = array(module.weight) * seen[module][0][None]
            contributions = read(columns.T, norm)
            out[parts].append(contributions.reshape(heads, -1).sum(-1) if parts == "heads" else contributions)
            out[kind].append(read(seen[module][1], norm))
        slopes = read(array(mixer.weight).T, norms[0]).reshape(heads, -1)
        values_of = np.repeat(v.reshape(len(v), -1, slopes.shape[1]), heads // (v.shape[1] // slopes.shape[1]), axis=1)
        out["sources"].append(attention[0, :, POSITION].numpy() * np.einsum("hk,shk->hs", slopes, values_of))
    return out | {"embed": read(oracle.embeddings(folder, tiny.IDS)[POSITION])}


def test_the_largest_neurons(checkpoint: Checkpoint) -> None:
    model, _ = jaxlin.load(checkpoint("gemma2"))
    x = model.embed(tiny.IDS)
    whole = table(model, jaxlin.attribute(model, x, 9, neurons=all_neurons(model)))
    few = jaxlin.attribute(model, x, 9, neurons=7).neurons
    np.testing.assert_allclose(np.abs(few.contribution), np.sort(np.abs(whole), axis=None)[::-1][:7], rtol=1e-4)
    np.testing.assert_allclose(few.contribution, whole[few.layer, few.index], rtol=1e-4)


def test_the_first_token_set_aside(checkpoint: Checkpoint) -> None:
    model, _ = jaxlin.load(checkpoint("llama"))
    x = model.embed(tiny.IDS)
    found = jaxlin.attribute(model, x, 9)
    np.testing.assert_allclose(np.abs(found.shares).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(found.shares * np.abs(found.tokens).sum(), found.tokens, rtol=1e-5)
    rest = found.exclude_first()
    assert (rest.tokens[0], rest.set_aside, rest.value) == (0, found.tokens[0], found.value)
    np.testing.assert_array_equal(rest.tokens[1:], found.tokens[1:])
    np.testing.assert_allclose(np.abs(rest.shares).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(rest.shares[1:] / rest.shares[1], found.shares[1:] / found.shares[1], rtol=1e-4)
    assert rest.defect <= 1e-5
    assert rest.exclude_first().set_aside == rest.set_aside
    alone = jaxlin.attribute(model, x[:1], 9)
    assert alone.defect <= 1e-5
    with pytest.raises(jaxlin.JaxlinError, match="two tokens or more"):
        alone.exclude_first()


def test_within_transforms(checkpoint: Checkpoint, x64: None) -> None:
    """Under jit the same; under vmap each prompt's own; the gradient of a contribution against differences."""
    model, _ = jaxlin.load(checkpoint("gemma2"), dtype="float64")
    xs = jax.numpy.stack([model.embed(tiny.IDS), model.embed(tiny.IDS[::-1])])

    def attributed(model: jaxlin.Decoder, x: jax.Array) -> jaxlin.Attribution:
        return jaxlin.attribute(model, x, (9, 11), position=POSITION, neurons=5, sources=True)

    batch = jax.jit(jax.vmap(attributed, in_axes=(None, 0)))(model, xs)
    assert repr(batch) == f"Attribution(heads of shape {batch.heads.shape})"
    assert len(batch.to_dict()["tokens"]) == 2
    for i, x in enumerate(xs):
        found = attributed(model, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, atol=1e-12), batch, found)  # noqa: B023
        assert isinstance(found.value, float)
        assert isinstance(found.tokens, np.ndarray)
    targets = (jnp.array([9, 3]), (jnp.array([9, 3]), 11), jax.random.normal(jax.random.key(0), (2, 64)))
    for many in targets:
        axes = (0, None) if isinstance(many, tuple) else 0
        found = jax.vmap(lambda target: jaxlin.attribute(model, xs[0], target), in_axes=(axes,))(many)
        for i in range(2):
            one = (int(many[0][i]), 11) if isinstance(many, tuple) else many[i]
            np.testing.assert_allclose(found.tokens[i], jaxlin.attribute(model, xs[0], one).tokens, atol=1e-12)
    with pytest.raises(jaxlin.JaxlinError, match=r"shape \(64,\); found \(5,\)"):
        jax.vmap(lambda u: jaxlin.attribute(model, xs[0], u))(jnp.ones((2, 5)))

    first = jax.jit(lambda x: attributed(model, x).sources[0, 1, 2])
    along, step = jax.random.normal(jax.random.key(0), xs[0].shape, "float64"), 1e-6
    slope = (first(xs[0] + step * along) - first(xs[0] - step * along)) / (2 * step)
    np.testing.assert_allclose(np.sum(jax.grad(first)(xs[0]) * along), slope, rtol=1e-6)


def test_as_plain_values() -> None:
    model, _ = jaxlin.load()
    x = model.embed([3, 4, 5])
    for sources in (False, True):
        found = jaxlin.attribute(model, x, 9, neurons=3, sources=sources)
        again = json.loads(json.dumps(found.to_dict()))
        assert again["value"] == found.value
        np.testing.assert_allclose(again["heads"], found.heads)
        np.testing.assert_array_equal(again["neurons"]["index"], found.neurons.index)
        assert (again["sources"] is not None) == sources
    assert repr(found) == f"Attribution(value={found.value:.4f}, tokens=3, layers=4, heads=4, neurons=3, " + (
        f"defect={found.defect:.0e})"
    )


def test_contributions_of_nothing() -> None:
    model, _ = jaxlin.load()
    found = jaxlin.attribute(model, model.embed([3, 4, 5]), np.zeros(model.config.hidden_size, np.float32))
    assert (found.value, found.defect, found.component_defect) == (0, 0, 0)
    assert not found.shares.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 128}, "0..127"),
        ({"target": (3, 3)}, "two different tokens"),
        ({"target": np.ones(63, np.float32)}, "direction of shape"),
        ({"target": np.full(64, np.nan, np.float32)}, "direction of finite numbers; found NaN"),
        ({"neurons": 385}, "0..384; found 385"),
        ({"neurons": -1}, "0..384; found -1"),
        ({"rule": "down"}, "gate, up, half"),
    ],
)
def test_what_is_not_there_is_refused(options: dict[str, Any], message: str, checkpoint: Checkpoint) -> None:
    model, _ = jaxlin.load(checkpoint("llama"))
    with pytest.raises(jaxlin.JaxlinError, match=message):
        jaxlin.attribute(model, model.embed([5, 6]), **{"target": 9, **options})


def test_directions_of_sixteen_bits() -> None:
    """Those that a model of 16 bits gives itself too."""
    for dtype in ("bfloat16", "float16"):
        model, _ = jaxlin.load(dtype=dtype)
        x = model.embed([3, 4, 5])
        along, of_token = jaxlin.attribute(model, x, token_direction(model, 9)), jaxlin.attribute(model, x, 9)
        np.testing.assert_allclose(along.value, of_token.value, rtol=0.02)


def test_words() -> None:
    """A word is its likelier spelling; a pair of words is the difference of their logits."""
    model, tokenizer = jaxlin.load()
    x = model.embed(tokenizer.encode("The cat sat on the"))
    bare, spaced, other = (tokenizer.to_single_token(word) for word in ("The", " The", " house"))
    logits = model.unembed(model(x)[-1])
    likelier = max((bare, spaced), key=lambda token: logits[token])
    by_word = jaxlin.attribute(model, x, "The", tokenizer=tokenizer)
    np.testing.assert_array_equal(by_word.tokens, jaxlin.attribute(model, x, likelier).tokens)
    pair = jaxlin.attribute(model, x, ("The", " house"), tokenizer=tokenizer)
    assert pair.value == pytest.approx(float(logits[likelier] - logits[other]), abs=1e-4)
    mixed = jaxlin.attribute(model, x, ("The", other), tokenizer=tokenizer)
    np.testing.assert_array_equal(mixed.tokens, pair.tokens)
    with pytest.raises(jaxlin.JaxlinError, match=r"expected a token id; found 'The'\. .*tokenizer="):
        jaxlin.attribute(model, x, "The")
    with pytest.raises(TokenizerError, match="expected one token"):
        jaxlin.attribute(model, x, ("The", "nonsensical words"), tokenizer=tokenizer)
    for same in ((" house", " house"), (" house", other)):
        with pytest.raises(jaxlin.JaxlinError, match="two different words"):
            jaxlin.attribute(model, x, same, tokenizer=tokenizer)


@pytest.mark.parametrize("position", [2, -3])
def test_positions_that_are_not_there(position: int, checkpoint: Checkpoint) -> None:
    model, _ = jaxlin.load(checkpoint("llama"))
    with pytest.raises(SiteError, match=r"0\.\.1"):
        jaxlin.attribute(model, model.embed([5, 6]), 9, position=position)


def test_it_takes_less_than_three_forward_passes() -> None:
    """In operations of the compiled programs; `benchmarks.attribution` has the time."""
    model, _ = jaxlin.load()
    x = model.embed([3, 4, 5, 6, 7])

    def operations(lowered: Any) -> float:
        return lowered.compile().cost_analysis()["flops"]

    once = operations(jax.jit(lambda model, x: model(x)).lower(model, x))
    target = jax.numpy.asarray(9)
    assert operations(contributions.lower(model, x, 4, target, "gate", 20)) <= 3 * once
