"""GGUF files of Gemma 3n."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from jaxlin.common.printable import quoted
from jaxlin.porting.gguf_keys import RMS_NORM, GGUFPort, sliding_types

MAX_DIFFERENCE = 5e-7
"""Of the threshold of a rounded share from the one in a file, which is computed in float32."""


def sparsity_of(scale: float) -> float:
    """The share of neurons that are off, from the threshold in deviations of the gates: a share of six decimals."""
    if scale == float("-inf"):
        return 0.0
    share = NormalDist().cdf(scale)
    rounded = round(share, 6)
    is_close = 0 < rounded < 1 and abs(NormalDist().inv_cdf(rounded) - scale) <= MAX_DIFFERENCE
    return rounded if is_close else share


def derive(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The layers that slide, and the share of neurons that are off in each.

    Raises:
        ValueError: see `GGUFPort.derive`.
    """
    depth, scales = config["num_hidden_layers"], metadata.get("activation_sparsity_scale")
    if not isinstance(scales, list) or len(scales) != depth or not all(type(s) is float and s == s for s in scales):
        raise ValueError(f"activation_sparsity_scale: expected {depth} numbers; found {quoted(scales)}")
    return {
        **sliding_types(metadata, config, period=5),
        "activation_sparsity_pattern": [sparsity_of(scale) for scale in scales],
    }


PER_LAYER_PARTS = {
    "ffn_norm": "pre_feedforward_layernorm",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
"""ggml's names of the norm before an MLP and of per-layer embeddings, in Gemma 3n and 4."""

PARTS = {
    **PER_LAYER_PARTS,
    "altup_proj": "model.altup_projections",
    "altup_unembd_proj": "model.altup_unembed_projections",
    "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}

GEMMA3N = GGUFPort(
    model_type="gemma3n_text",
    keys={
        **RMS_NORM,
        "attention.sliding_window": "sliding_window",
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "final_logit_softcapping": "final_logit_softcapping",
        "rope.freq_base_swa": "rope_local_base_freq",
        "altup.active_idx": "altup_active_idx",
        "altup.num_inputs": "altup_num_inputs",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    },
    read=("attention.sliding_window_pattern", "activation_sparsity_scale"),
    per_layer=("feed_forward_length",),
    parts=PARTS,
    sizes={
        "laurel_rank": "model.layers.0.laurel.linear_left.weight",
        "vocab_size_per_layer_input": "model.embed_tokens_per_layer.weight",
    },
    stacked=("model.altup_projections", "model.altup_unembed_projections"),
    derive=derive,
)
