"""Latent attention against transformers' modules of DeepSeek V3 and Mistral 4, with copied weights, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
import torch
from flax import nnx
from transformers.models.deepseek_v3 import configuration_deepseek_v3, modeling_deepseek_v3
from transformers.models.mistral4 import configuration_mistral4, modeling_mistral4

from jaxlin.nn.biases import has_biases, without_biases
from jaxlin.nn.context import Context
from jaxlin.nn.freeze_modes import Record, Replay
from jaxlin.nn.latent_attention import LatentAttention, LatentConfig
from jaxlin.nn.ropes import Rope
from jaxlin.nn.schedule import Schedule

TOKENS, WIDTH, HEADS, ROTATED, REST, VALUE, RANK, QUERY_RANK = 9, 32, 4, 6, 10, 12, 16, 24
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "kv_lora_rank": RANK,
    "q_lora_rank": QUERY_RANK, "qk_rope_head_dim": ROTATED, "qk_nope_head_dim": REST, "v_head_dim": VALUE,
    "max_position_embeddings": 64,
}  # fmt: skip
YARN = {"factor": 16.0, "original_max_position_embeddings": 4, "mscale": 1.0, "mscale_all_dim": 0.8}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3": ("DeepseekV3", {}),
    "deepseek_v3, no latent of queries": ("DeepseekV3", {"q_lora_rank": None}),
    "deepseek_v3, biases": ("DeepseekV3", {"attention_bias": True}),
    "deepseek_v3, halves": ("DeepseekV3", {"rope_interleave": False}),
    "deepseek_v3, yarn": ("DeepseekV3", tiny.rope("yarn", **YARN)),
    "mistral4": ("Mistral4", tiny.rope("yarn", **YARN, llama_4_scaling_beta=0.3)),
}


def theirs(stem: str, options: dict[str, Any]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Transformers' attention, every parameter drawn, and its rotary embedding; called within `oracle.Lift`."""
    configuration = configuration_deepseek_v3 if stem == "DeepseekV3" else configuration_mistral4
    modeling = modeling_deepseek_v3 if stem == "DeepseekV3" else modeling_mistral4
    config = getattr(configuration, f"{stem}Config")(**{**SIZES, **options})
    config._attn_implementation = "eager"
    attention = getattr(modeling, f"{stem}Attention")(config, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in attention.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        torch.nn.init.zeros_(parameter)
        parameter.data += 1 + 0.3 * drawn if parameter.ndim == 1 else drawn / parameter.shape[-1] ** 0.5
    return attention, getattr(modeling, f"{stem}RotaryEmbedding")(config)


def ours(attention: Any, rotary: Any) -> tuple[LatentAttention, Schedule]:
    """Our attention with the weights of theirs, and the schedule of the prompt."""
    config = attention.config
    parameters = config.rope_parameters
    rope = Rope(tuple(rotary.inv_freq.tolist()), rotary.attention_scaling)
    settings = LatentConfig(
        vocab_size=8, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, head_dim=ROTATED + REST, norm_eps=1e-3, hidden_act="silu",
        max_position_embeddings=64, tie_word_embeddings=True, ropes=(rope,), windows=(None,),
        q_lora_rank=config.q_lora_rank, kv_lora_rank=RANK, qk_rope_head_dim=ROTATED, v_head_dim=VALUE,
        attention_scale=attention.scaling, attention_bias=config.attention_bias,
        query_beta=parameters.get("llama_4_scaling_beta", 0.0), query_length=4,
    )  # fmt: skip
    stored = {name: parameter.detach().numpy() for name, parameter in attention.named_parameters()}
    order = [*range(0, ROTATED, 2), *range(1, ROTATED, 2)] if config.rope_interleave else [*range(ROTATED)]
    latent, last = slice(0, RANK), "q_proj" if config.q_lora_rank is None else "q_b_proj"
    queries = stored.pop(f"{last}.weight").reshape(HEADS, REST + ROTATED, -1)
    queries = np.concatenate([queries[:, REST:][:, order], queries[:, :REST]], axis=1)
    stored[f"{last}.weight"] = queries.reshape(-1, queries.shape[-1])
    for kind in ("weight", "bias")[: 1 + config.attention_bias]:
        joint = stored.pop(f"kv_a_proj_with_mqa.{kind}")
        stored |= {f"kv_a_proj.{kind}": joint[latent], f"k_rope_proj.{kind}": joint[RANK:][order]}
    expanded = stored.pop("kv_b_proj.weight").reshape(HEADS, REST + VALUE, RANK)
    stored["k_b_proj.weight"] = expanded[:, :REST].reshape(-1, RANK)
    stored["v_b_proj.weight"] = expanded[:, REST:].reshape(-1, RANK)
    layer = LatentAttention(settings, rngs=nnx.Rngs(0))

    def weight(path: Any, value: Any) -> Any:
        array = stored.pop(".".join(key.name for key in path if key.name != "value"))
        assert array.shape == value.shape
        return jnp.asarray(array)

    layer = jax.tree_util.tree_map_with_path(weight, layer)
    assert not stored
    positions = jnp.arange(TOKENS)
    frequencies, scale = rope.frequencies(TOKENS)
    return layer, Schedule(jnp.asarray(frequencies), jnp.asarray(scale), positions, 0 * positions)


@pytest.mark.parametrize("case", CASES)
def test_against_transformers(case: str, x64: None) -> None:
    x = np.random.default_rng(1).normal(size=(TOKENS, WIDTH))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), oracle.Lift():
            attention, rotary = theirs(*CASES[case])
            positions = torch.arange(TOKENS)[None]
            hidden = torch.as_tensor(x)[None]
            mask = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)[None, None]
            expected = attention(
                hidden_states=hidden,
                position_embeddings=rotary(hidden, positions),
                position_ids=positions,
                attention_mask=mask,
            )[0][0].numpy()
    finally:
        torch.set_default_dtype(before)
    layer, schedule = ours(attention, rotary)
    recording = Record()
    output = layer(jnp.asarray(x), schedule, Context(recording))
    np.testing.assert_allclose(output, expected, atol=1e-12)

    # What the replay computes is linear in x and the biases, at other points too, and at x it is the output.
    assert set(recording.factors) == {"pattern", "kv_a_layernorm.inv_rms"}
    replay = Context(Replay(recording.factors))
    np.testing.assert_allclose(layer(jnp.asarray(x), schedule, replay), expected, atol=1e-12)
    y, z = np.random.default_rng(2).normal(size=(2, TOKENS, WIDTH))
    linear = without_biases(layer)
    one, two, both = (linear(jnp.asarray(a), schedule, replay) for a in (y, z, y - 3 * z))
    np.testing.assert_allclose(one - 3 * two, both, atol=1e-12)
    has_bias = has_biases(layer)
    assert has_bias == bool(np.abs(layer(0 * jnp.asarray(x), schedule, replay)).max() > 1e-3)
