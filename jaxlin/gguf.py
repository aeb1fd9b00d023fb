"""A GGUF file as if it were a Hugging Face checkpoint: llama.cpp's metadata and tensor names, translated."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlin.checkpoint import Checkpoint
from jaxlin.checkpoint.gguf import hf_name, unpermute
from jaxlin.errors import ConfigError
from jaxlin.registry import GGUF_ARCHITECTURES

_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
"""Metadata below ``{arch}.``, and the keys of config.json they are."""

_HARMLESS = {
    "vocab_size": "the embedding matrix says it",
    "rope.dimension_count": "checked against head_dim",
    "attention.value_length": "checked against attention.key_length",
    "rope.scaling.finetuned": "how the model was trained",
    "rope.scaling.type": "read with the other rope.scaling keys",
    "rope.scaling.factor": "read with rope.scaling.type",
    "rope.scaling.original_context_length": "read with rope.scaling.type",
}


class GGUFModel:
    """The config and the tensors of a GGUF checkpoint, under Hugging Face's names.

    Attributes:
        config: as config.json would say it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tensors = {hf_name(name): name for name in checkpoint.names()}
        arch = checkpoint.config.get("general.architecture")
        if arch not in GGUF_ARCHITECTURES:
            known = ", ".join(GGUF_ARCHITECTURES)
            raise ConfigError(f"{checkpoint.source}: expected a GGUF architecture of {known}; found {arch!r}.")
        self.config = self._translated(arch)

    def _translated(self, arch: str) -> dict[str, Any]:
        source, metadata = self._checkpoint.source, self._checkpoint.config
        given = {k.removeprefix(f"{arch}."): v for k, v in metadata.items() if k.startswith(f"{arch}.")}
        if unknown := sorted(set(given) - _KEYS.keys() - _HARMLESS.keys()):
            raise ConfigError(
                f"{source}: expected only metadata that jaxlin understands; found "
                + ", ".join(f"{arch}.{key} = {given[key]!r}"[:120] for key in unknown)
            )
        config = {_KEYS[key]: _decimal(value) for key, value in given.items() if key in _KEYS}
        config["model_type"] = GGUF_ARCHITECTURES[arch]
        if "model.embed_tokens.weight" not in self._tensors:
            raise ConfigError(f"{source}: expected a tensor token_embd.weight; found none.")
        config["vocab_size"] = self.shape("model.embed_tokens.weight")[0]
        config["tie_word_embeddings"] = "lm_head.weight" not in self._tensors
        for projection, key in (("self_attn.q_proj", "attention_bias"), ("mlp.up_proj", "mlp_bias")):
            config[key] = f"model.layers.0.{projection}.bias" in self._tensors
        config["rope_parameters"] = self._rope(given, config)
        return config

    def _rope(self, given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        head_dim = config.get("head_dim", config.get("hidden_size", 0) // max(1, config.get("num_attention_heads", 1)))
        for key in ("rope.dimension_count", "attention.value_length"):
            if given.get(key, head_dim) != head_dim:
                raise ConfigError(f"{self._checkpoint.source}, {key}: expected {head_dim}; found {given[key]}.")
        kind = given.get("rope.scaling.type", "none")
        if "rope_freqs.weight" in self._tensors:
            divisors = self._checkpoint.read("rope_freqs.weight").astype(float)
            return {"rope_type": "divisors", "divisors": divisors.tolist()}
        if kind == "none":
            return {}
        parameters = {"rope_type": kind, "factor": given.get("rope.scaling.factor")}
        if "rope.scaling.original_context_length" in given:
            parameters["original_max_position_embeddings"] = given["rope.scaling.original_context_length"]
        return parameters

    def names(self) -> set[str]:
        """The tensors there are; what the config has consumed is not among them."""
        return set(self._tensors) - {"rope_freqs.weight"}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one."""
        return self._checkpoint.shape(self._tensors[name])

    def read(self, name: str) -> np.ndarray:
        """The values of one, decoded; llama.cpp's interleaved rows of queries and keys are put back in halves."""
        values = self._checkpoint.read(self._tensors[name])
        if ".self_attn.q_proj." in name:
            return unpermute(values, self.config["num_attention_heads"])
        if ".self_attn.k_proj." in name:
            return unpermute(values, self.config.get("num_key_value_heads", self.config["num_attention_heads"]))
        return values

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of one."""
        return self.read(name)[start:stop]


def _decimal(value: Any) -> Any:
    """A float as it was written: GGUF keeps 1e-05 as the float32 nearest to it."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
