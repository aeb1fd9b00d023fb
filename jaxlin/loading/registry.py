"""The family file of each `model_type` and of each GGUF architecture: only this file of ``jaxlin/`` names families."""

import importlib
from typing import NamedTuple

from jaxlin.common.errors import ConfigError
from jaxlin.common.printable import quoted
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port

FAMILIES: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "smollm3"),
    "llama4": ("llama4_text", "llama4"),
    "gemma": ("gemma",),
    "gemma2": ("gemma2", "vaultgemma"),
    "gemma3": ("gemma3_text", "gemma3"),
    "gemma3n": ("gemma3n_text", "gemma3n"),
    "gemma4": ("gemma4_text", "gemma4", "gemma4_unified_text", "gemma4_unified"),
    "qwen": ("qwen2", "qwen3"),
    "qwen_moe": ("qwen2_moe", "qwen3_moe"),
    "qwen_vl": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    "qwen3_5": ("qwen3_5", "qwen3_5_text"),
    "qwen3_5_moe": ("qwen3_5_moe", "qwen3_5_moe_text"),
    "qwen3_next": ("qwen3_next",),
    "phi3": ("phi3", "phi4_multimodal"),
    "phi": ("phi",),
    "mistral": ("mistral", "ministral", "ministral3"),
    "mistral3": ("mistral3",),
    "mistral4": ("mistral4",),
    "deepseek": ("deepseek_v3",),
    "olmo": ("olmo",),
    "olmo2": ("olmo2", "olmo3"),
    "mixtral": ("mixtral",),
    "olmo_hybrid": ("olmo_hybrid",),
    "olmoe": ("olmoe", "flex_olmo"),
    "phimoe": ("phimoe",),
    "gpt_neox": ("gpt_neox",),
    "gpt2": ("gpt2",),
    "muse_glimmer": ("muse_glimmer",),
    "gpt_oss": ("gpt_oss",),
}
"""The family files in ``models/``, and the `model_type`s each of them ports."""

GGUF_ARCHITECTURES: dict[str, str] = {
    **dict.fromkeys(("llama", "smollm3"), "llama"),
    **{name: name for name in ("gemma", "gemma2", "gemma3", "gemma3n", "gemma4")},
    **{name: name for name in ("phi3", "olmo", "olmo2", "gpt2")},
    **dict.fromkeys(("qwen2", "qwen3"), "qwen"),
    "qwen35": "qwen3_5",
    "qwen35moe": "qwen3_5_moe",
    "qwen3next": "qwen3_next",
    **dict.fromkeys(("qwen2moe", "qwen3moe"), "qwen_moe"),
    "olmoe": "olmoe",
    "phi2": "phi",
    "mistral3": "mistral",
    "llama4": "llama4",
    "gptneox": "gpt_neox",
    "gpt-oss": "gpt_oss",
    "deepseek2": "deepseek",
    "mistral4": "mistral4",
}
"""The family file that reads each ``general.architecture`` of llama.cpp."""


INCOMPLETE_ARCHITECTURES = {
    "phimoe": "whose files lack short_mscale, the factor of rotary positions. Take the model's safetensors",
}
"""Architectures of llama.cpp whose files do not say all that the model is computed from."""


class Family(NamedTuple):
    """The checkpoints that a family file supports.

    Attributes:
        name: the name of the file.
        types: the `model_type`s that it ports.
        gguf: the GGUF architectures that it reads.
    """

    name: str
    types: tuple[str, ...]
    gguf: tuple[str, ...]


def families() -> list[Family]:
    """The families that are supported, imported from their files."""
    supported = []
    for name in FAMILIES:
        module = importlib.import_module(f"jaxlin.models.{name}")
        gguf = tuple(arch for arch, file in GGUF_ARCHITECTURES.items() if file == name)
        supported.append(Family(name, tuple(module.PORTS), gguf))
    return supported


def port_for(model_type: object) -> Port:
    """The port of `model_type`.

    Raises:
        ConfigError: there is none; the message lists the `model_type`s that have one.
    """
    for family, types in FAMILIES.items():
        if isinstance(model_type, str) and model_type in types:
            return importlib.import_module(f"jaxlin.models.{family}").PORTS[model_type]
    names = ", ".join(name for types in FAMILIES.values() for name in types)
    raise ConfigError(f"model_type: expected one of {names}; found {quoted(model_type)}, which jaxlin has no port for.")


def gguf_port_for(arch: object) -> GGUFPort:
    """The GGUF port of an architecture.

    Raises:
        ConfigError: there is none; the message lists the architectures that have one.
    """
    if not isinstance(arch, str) or arch not in GGUF_ARCHITECTURES:
        names = ", ".join(GGUF_ARCHITECTURES)
        reason = INCOMPLETE_ARCHITECTURES.get(arch) if isinstance(arch, str) else None
        raise ConfigError(
            f"general.architecture: expected one of {names}; found {quoted(arch)}, "
            f"{reason or 'which jaxlin cannot read'}."
        )
    return importlib.import_module(f"jaxlin.models.{GGUF_ARCHITECTURES[arch]}").GGUF[arch]
