"""`model_type` to port: the only place in ``jaxlin/`` that names a family."""

import importlib
from typing import NamedTuple

from jaxlin.common.errors import ConfigError
from jaxlin.common.printable import quoted
from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port

FAMILIES: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "smollm3"),
    "gemma": ("gemma",),
    "gemma2": ("gemma2", "vaultgemma"),
    "gemma3": ("gemma3_text", "gemma3"),
    "qwen": ("qwen2", "qwen3"),
    "qwen_vl": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    "phi3": ("phi3", "phi4_multimodal"),
    "phi": ("phi",),
    "mistral": ("mistral", "ministral", "ministral3", "mistral3"),
    "olmo": ("olmo",),
    "olmo2": ("olmo2", "olmo3"),
}
"""The family files in ``models/``, and the `model_type`s each of them ports."""

GGUF_ARCHITECTURES: dict[str, str] = {
    **dict.fromkeys(("llama", "smollm3"), "llama"),
    **{name: name for name in ("gemma", "gemma2", "gemma3", "phi3", "olmo", "olmo2")},
    **dict.fromkeys(("qwen2", "qwen3"), "qwen"),
    "phi2": "phi",
    "mistral3": "mistral",
}
"""llama.cpp's ``general.architecture``, and the family file that says how to read it."""


class Family(NamedTuple):
    """What a family file supports.

    Attributes:
        name: of the file.
        types: the `model_type`s it ports.
        gguf: the GGUF architectures it reads.
    """

    name: str
    types: tuple[str, ...]
    gguf: tuple[str, ...]


def families() -> list[Family]:
    """What is supported, as it is loaded."""
    found = []
    for name in FAMILIES:
        module = importlib.import_module(f"jaxlin.models.{name}")
        gguf = tuple(arch for arch, file in GGUF_ARCHITECTURES.items() if file == name)
        found.append(Family(name, tuple(module.PORTS), gguf))
    return found


def port_for(model_type: object) -> Port:
    """The port of `model_type`.

    Raises:
        ConfigError: no port; the message lists those there are.
    """
    for family, types in FAMILIES.items():
        if isinstance(model_type, str) and model_type in types:
            return importlib.import_module(f"jaxlin.models.{family}").PORTS[model_type]
    known = ", ".join(name for types in FAMILIES.values() for name in types)
    raise ConfigError(f"model_type: expected one of {known}; found {quoted(model_type)}, which jaxlin has no port for.")


def gguf_port_for(arch: object) -> GGUFPort:
    """How GGUF files of an architecture are read.

    Raises:
        ConfigError: an unknown one; the message lists those there are.
    """
    if not isinstance(arch, str) or arch not in GGUF_ARCHITECTURES:
        known = ", ".join(GGUF_ARCHITECTURES)
        found = f"{quoted(arch)}, which jaxlin cannot read"
        raise ConfigError(f"general.architecture: expected one of {known}; found {found}.")
    return importlib.import_module(f"jaxlin.models.{GGUF_ARCHITECTURES[arch]}").GGUF[arch]
