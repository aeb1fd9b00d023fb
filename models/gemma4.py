r"""Gemma 4: Gemma 3's sandwich with plain norms, normed values, and layers of two kinds that differ in their heads.

Google DeepMind, "Gemma 4", 2026. Each block ends with a factor of the stream, ``layer_scalar``. Scores are not scaled:
queries and keys are normed. In full layers heads are wider, rotary frequencies are `proportional`, and values may be
the keys before their own norm and rotation.

- ``gemma4_text``, and ``gemma4``, the text half of the multimodal wrapper.
- ``gemma4_unified_text`` and ``gemma4_unified``: the same text model beside another vision part.
"""

import functools
from typing import Any

from jaxlin.models.gemma3 import HEADS, TEXT
from jaxlin.models.gemma4_config import gemma4_config, gemma4_unified_config, gemma4_wrapper_config
from jaxlin.models.gemma4_experts import Gemma4Mixture
from jaxlin.models.gemma4_gguf import GEMMA4
from jaxlin.models.gemma4_text import Gemma4, Gemma4Config
from jaxlin.porting.port import Names, Port
from jaxlin.porting.shared_fields import unread_projections
from jaxlin.porting.tensor_rows import either, fused_experts, single_experts


def model_of(config: Gemma4Config, **options: Any) -> Gemma4:
    """The model of a config: with experts, where it has them."""
    return (Gemma4Mixture if config.num_experts else Gemma4)(config, **options)


def names(config: Gemma4Config) -> Names:
    """The names of the experts and their router."""
    if not config.num_experts:
        return {}
    fused = fused_experts("moe.experts", config.moe_intermediate_size, "experts")
    router = {"weight": "proj.weight", "scale": "scale", "per_expert_scale": "per_expert_scale"}
    return {
        **{f"moe.gate.{name}": f"router.{stored}" for name, stored in router.items()},
        **either(fused, single_experts("moe.experts", "experts")),
    }


MEDIA = {
    f"{body}{part}.*": "the vision and audio halves of the model"
    for body in ("", "model.")
    for part in ("vision_tower", "vision_embedder", "audio_tower", "embed_vision", "embed_audio")
}


def unread(config: Gemma4Config) -> dict[str, str]:
    """The tensors that files have though no layer reads them."""
    return unread_projections(config.value_layers)


WRAPPED: dict[str, Any] = {"bodies": TEXT, "heads": HEADS, "left_out": MEDIA}
PORTS = {
    "gemma4_text": Port(model_of, gemma4_config, names=names, unread=unread),
    "gemma4": Port(model_of, gemma4_wrapper_config, names=names, unread=unread, **WRAPPED),
    "gemma4_unified_text": Port(Gemma4, gemma4_unified_config, unread=unread),
    "gemma4_unified": Port(
        Gemma4,
        functools.partial(gemma4_wrapper_config, text_config=gemma4_unified_config),
        unread=unread,
        **WRAPPED,
    ),
}

GGUF = {"gemma4": GEMMA4}
