"""`model_type` to port: the only place in ``jaxlin/`` that names a family."""

import importlib

from jaxlin.errors import ConfigError
from jaxlin.port import Port

FAMILIES: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "smollm3"),
    "gemma": ("gemma", "gemma2", "gemma3_text", "gemma3"),
    "qwen": ("qwen2", "qwen3"),
    "phi": ("phi3", "phi"),
    "mistral": ("mistral", "ministral", "ministral3", "mistral3"),
    "olmo": ("olmo", "olmo2", "olmo3"),
}
"""The family files in ``models/``, and the `model_type`s each of them ports."""

GGUF_ARCHITECTURES: dict[str, str] = {
    "llama": "llama",
}
"""llama.cpp's ``general.architecture``, and the `model_type` it is read as."""


def port(model_type: object) -> Port:
    """The port of `model_type`.

    Raises:
        ConfigError: no port; the message lists those there are.
    """
    for family, types in FAMILIES.items():
        if model_type in types:
            return importlib.import_module(f"jaxlin.models.{family}").PORTS[model_type]
    known = ", ".join(name for types in FAMILIES.values() for name in types)
    raise ConfigError(f"model_type: expected one of {known}; found {model_type!r}, which jaxlin has no port for.")
