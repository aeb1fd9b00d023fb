"""Heads taken away: against transformers with each head zeroed by a hook, and against its frozen model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import scipy.stats
import tiny
import torch

import jaxlin
from jaxlin.causal import deletion, head_ablation, removal, without_heads
from jaxlin.nn.sites import SiteError

POSITION, TOKEN = 11, 9


def mixers(model: Any) -> list[torch.nn.Module]:
    """The output projections of all layers: what goes into one is what the heads give, side by side."""
    attentions = [layer.self_attn for layer in model.base_model.layers]
    return [attention.dense if hasattr(attention, "dense") else attention.o_proj for attention in attentions]


@contextmanager
def before(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """What goes into `module` is changed."""
    hook = module.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]),))
    try:
        yield
    finally:
        hook.remove()


def without(folder: Path, heads: int) -> np.ndarray:
    """How much the logit falls without each head."""
    model = oracle.load(folder, torch.float64)

    def logit() -> float:
        with torch.no_grad(), oracle.lifted(model):
            return float(model(input_ids=torch.tensor([tiny.IDS])).logits[0, POSITION, TOKEN])

    def fallen(mixer: torch.nn.Module, head: int) -> float:
        def zeroed(z: torch.Tensor) -> torch.Tensor:
            parts = z.reshape(*z.shape[:2], heads, -1).clone()
            parts[:, :, head] = 0
            return parts.reshape(z.shape)

        with before(mixer, zeroed):
            return whole - logit()

    whole = logit()
    return np.array([[fallen(mixer, head) for head in range(heads)] for mixer in mixers(model)])


def slopes_times_heads(folder: Path, heads: int) -> np.ndarray:
    """The gradient of the frozen model's logit in what the heads of all positions give, times what they give."""
    model = oracle.load(folder, torch.float64)
    given: list[torch.Tensor] = []

    def kept(z: torch.Tensor) -> torch.Tensor:
        z.retain_grad()
        given.append(z)
        return z

    x = model.get_input_embeddings()(torch.tensor([tiny.IDS])).detach().requires_grad_()
    with oracle.lifted(model), oracle.frozen(model, "gate"):
        for mixer in mixers(model):
            mixer.register_forward_pre_hook(lambda module, inputs: (kept(inputs[0]),))
        model(inputs_embeds=x).logits[0, POSITION, TOKEN].backward()
    return np.array([(z.grad * z).detach()[0].reshape(len(z[0]), heads, -1).sum((0, 2)).numpy() for z in given])


@pytest.mark.parametrize("name", ["llama, biases", "gemma2", "gemma3_text", "phi", "mistral, window", "olmo2"])
def test_against_transformers(name: str, checkpoint: Callable[[str], Path], x64: None) -> None:
    folder = checkpoint(name)
    model, _ = jaxlin.load(folder, dtype="float64")
    found = head_ablation(model, model.embed(tiny.IDS), TOKEN, position=POSITION)
    heads = model.config.num_attention_heads
    np.testing.assert_allclose(found.value, oracle.logits(folder, tiny.IDS, torch.float64)[POSITION, TOKEN], atol=1e-11)
    np.testing.assert_allclose(found.effects, without(folder, heads), atol=1e-11)
    np.testing.assert_allclose(found.paths, slopes_times_heads(folder, heads), atol=1e-11)
    expected = jaxlin.attribute(model, model.embed(tiny.IDS), TOKEN, position=POSITION)
    np.testing.assert_allclose(found.direct, expected.heads, atol=1e-11)


def test_what_the_last_block_brings_is_direct(checkpoint: Callable[[str], Path], x64: None) -> None:
    """Where its MLP does not read what its attention wrote, only the final norm and the unembedding come after."""
    model, _ = jaxlin.load(checkpoint("phi"), dtype="float64")
    found = head_ablation(model, model.embed(tiny.IDS), (9, 11))
    np.testing.assert_allclose(found.paths[-1], found.direct[-1], atol=1e-12)
    assert np.abs(found.paths[0] - found.direct[0]).max() > 1e-3


def test_on_the_small_model() -> None:
    """The map's account of its heads says which of them matter."""
    model, tokenizer = jaxlin.load()
    x = model.embed(tokenizer.encode("The bridge out of the town is the"))
    found = head_ablation(model, x, tokenizer.to_single_token(" most"), progress=False)
    for ranked, other in ((found.rank_correlation, found.paths), (found.direct_rank_correlation, found.direct)):
        expected: Any = scipy.stats.spearmanr(found.effects, other, axis=None)
        np.testing.assert_allclose(ranked, expected.statistic, atol=1e-12)
    assert found.rank_correlation > 0.3


@pytest.mark.parametrize("name", ["llama, biases", "gemma2", "phi", "mistral, window"])
def test_a_model_without_heads(name: str, checkpoint: Callable[[str], Path], x64: None) -> None:
    """One head less is what was measured; two are gone from the map too."""
    model, _ = jaxlin.load(checkpoint(name), dtype="float64")
    x = model.embed(tiny.IDS)
    found = head_ablation(model, x, TOKEN)
    for layer, head in ((0, 1), (1, 3)):
        less = jaxlin.attribute(without_heads(model, [(layer, head)]), x, TOKEN)
        np.testing.assert_allclose(found.value - less.value, found.effects[layer, head], atol=1e-12)
        assert less.heads[layer, head] == 0
    both = without_heads(model, [(0, 1), (-1, -1)])
    gone = jaxlin.attribute(both, x, TOKEN).heads
    assert np.argwhere(gone == 0).tolist() == [[0, 1], [model.config.num_hidden_layers - 1, gone.shape[1] - 1]]
    assert jaxlin.local_map(both, x).residual <= 1e-12
    np.testing.assert_array_equal(without_heads(model, [])(x), model(x))


def test_packed_projections_are_unpacked(smollm2_gguf: Path) -> None:
    model, _ = jaxlin.load(smollm2_gguf)
    found = without_heads(model, [(3, 2)]).layers.self_attn.o_proj.weight[...]
    expected = np.asarray(model.layers.self_attn.o_proj.weight[...][3])
    assert not found[3, :, 128:192].any()
    np.testing.assert_array_equal(found[3, :, :128], expected[:, :128])
    np.testing.assert_array_equal(found[3, :, 192:], expected[:, 192:])


def test_words() -> None:
    model, tokenizer = jaxlin.load()
    x = model.embed(tokenizer.encode("The bridge out of the town is the"))
    ids = tokenizer.to_single_token(" most"), tokenizer.to_single_token(" only")
    triplets = jaxlin.local_map(model, x).svd(2)
    for check in (head_ablation, deletion):
        found, same = check(model, x, ("most", "only"), tokenizer=tokenizer), check(model, x, ids)
        np.testing.assert_array_equal(found.effects, same.effects)
    changes = [
        removal(model, x, triplets, target, tokenizer=given).change
        for target, given in ((("most", "only"), tokenizer), (ids, None))
    ]
    assert changes[0] == changes[1]


def test_refused(checkpoint: Callable[[str], Path]) -> None:
    model, _ = jaxlin.load(checkpoint("llama"))
    x = model.embed(tiny.IDS)
    with pytest.raises(SiteError, match="Position: expected one in"):
        head_ablation(model, x, 9, position=40)
    with pytest.raises(jaxlin.JaxlinError, match="Target: expected token ids"):
        head_ablation(model, x, -1)
    for pair in ((4, 0), (0, 4), (-5, 0)):
        with pytest.raises(SiteError, match="Heads: expected pairs of a layer below 4 and a head below 4; found"):
            without_heads(model, [pair])
