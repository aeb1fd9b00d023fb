"""The config.json of a GGUF checkpoint, translated from llama.cpp's metadata and from the shapes of its tensors."""

from collections.abc import Mapping
from math import nextafter
from typing import Any

import numpy as np

from jaxlin.checkpoint.config import how_to_ignore
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.common.errors import ConfigError
from jaxlin.common.printable import quoted
from jaxlin.porting.gguf_keys import LONGROPE, GGUFPort, decimal, rope_scaling

KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
"""Metadata below ``{arch}.`` that all architectures have, and the key of config.json that each is."""

REQUIRED = {"embedding_length", "block_count", "feed_forward_length", "attention.head_count"}
EPSILONS = {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"}
INTEGERS = (KEYS.keys() - {"rope.freq_base"}) | {
    *("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length"),
    "attention.key_length_swa",
}
"""Metadata that is a positive integer, or where `GGUFPort.per_layer` says so one for each layer."""

DRAFTING = "nextn_predict_layers"
"""How many of the last blocks draft further tokens: they read the output of the others, and change nothing of it."""

FIXED = {"attention.causal": True, "rope.scaling.yarn_ext_factor": 1.0}
"""Metadata that must have this value where it is present."""

NOT_TRANSLATED = {
    "vocab_size": "the embedding matrix has as many rows",
    DRAFTING: "the model has so many blocks less",
    "tensor_data_layout": "a name of files of 2023 for the order of the rows, which follows from the architecture",
    "rope.dimension_count": "read with head_dim",
    "pooling_type": "an embedding model pools the decoder's output",
    "attention.value_length": "checked against attention.key_length",
    "rope.scaling.finetuned": "about the training of the model",
    **dict.fromkeys(
        ("rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
        + ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast")
        + ("rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier"),
        "read by rope_scaling",
    ),
}
"""Metadata that is no key of config.json, and the reason."""

ROPE_TENSORS = ("rope_freqs", *LONGROPE)
"""The tensors that the config is read from."""


def translated_config(checkpoint: GGUFFile, port: GGUFPort, names: Mapping[str, str]) -> dict[str, Any]:
    """The contents of the config.json.

    Args:
        checkpoint: the file.
        port: that of its architecture.
        names: ggml's name of each of its tensors, by Hugging Face's.

    Raises:
        ConfigError: the metadata is not understood, or contradicts the tensors.
    """
    return _Translation(checkpoint, port, names).config()


class _Translation:
    """The metadata of one file."""

    def __init__(self, checkpoint: GGUFFile, port: GGUFPort, names: Mapping[str, str]) -> None:
        self._checkpoint, self._port, self._names = checkpoint, port, names
        self._source, self._arch = checkpoint.source, str(checkpoint.config.get("general.architecture"))
        prefix, metadata = f"{self._arch}.", checkpoint.config
        self._values = {k.removeprefix(prefix): decimal(v) for k, v in metadata.items() if k.startswith(prefix)}
        self._drafting = self._values.get(DRAFTING, 0)

    def error(self, key: str, expected: str, value: str) -> ConfigError:
        return ConfigError(f"{self._source}, {self._arch}.{key}: expected {expected}; found {value}.")

    def config(self) -> dict[str, Any]:
        """The contents of the config.json."""
        source, port, values, names = self._source, self._port, self._values, self._names
        keys, fixed = {**KEYS, **port.keys}, {**FIXED, **port.fixed}
        if unknown := sorted(set(values) - keys.keys() - fixed.keys() - {*port.read} - NOT_TRANSLATED.keys()):
            raise ConfigError(
                f"{source}: expected only metadata that jaxlin understands; found "
                + ", ".join(f"{self._arch}.{key} = {quoted(values[key])}"[:120] for key in unknown)
                + f". {how_to_ignore([f'{self._arch}.{key}' for key in unknown])}"
            )
        for key in sorted(REQUIRED - {*port.optional} | (EPSILONS & (keys.keys() | fixed.keys()))):
            if key not in values:
                raise ConfigError(f"{source}: expected metadata {self._arch}.{key}; found none.")
        for key, value in fixed.items():
            if values.get(key, value) != value:
                raise self.error(key, repr(value), quoted(values[key]))
        self._check_integers()
        self._check_tensors()

        config = {keys[key]: value for key, value in values.items() if key in keys}
        config["model_type"] = port.model_type
        config["num_hidden_layers"] -= self._drafting
        config["vocab_size"] = self._checkpoint.shape(names["model.embed_tokens.weight"])[0]
        config["tie_word_embeddings"] = "lm_head.weight" not in names
        in_layers = {name.split(".", 3)[3] for name in names if name.startswith("model.layers.")}
        in_layers |= {name.replace("qkv_proj", "q_proj") for name in in_layers}
        config |= {key: True for key, tensor in port.flags.items() if tensor in in_layers}
        config |= {
            key: self._checkpoint.shape(names[tensor])[0] for key, tensor in port.sizes.items() if tensor in names
        }
        config |= self._heads(config)
        try:
            if scaling := rope_scaling(values, self._rope_vectors()):
                config["rope_scaling"] = scaling
            config |= port.derive(values, config)
        except ValueError as error:
            raise ConfigError(f"{source}, {self._arch}.{error}.") from error
        return {**dict.fromkeys(port.null), **{key: value for key, value in config.items() if value is not None}}

    def _check_integers(self) -> None:
        values = self._values
        depth, drafting = values["block_count"], self._drafting
        if type(depth) is int and (type(drafting) is not int or not 0 <= drafting < max(1, depth)):
            raise self.error(DRAFTING, f"a number of blocks below block_count, {depth}", quoted(drafting))
        for key in sorted(INTEGERS & values.keys()):
            numbers, expected = [values[key]], "an integer of at least 1"
            if key in self._port.per_layer and isinstance(values[key], list):
                numbers, expected = values[key], f"integers of at least 1 for {values['block_count']} layers"
                if len(numbers) != values["block_count"]:
                    raise self.error(key, expected, f"{len(numbers)}")
            if any(type(number) is not int or number < 1 for number in numbers):
                raise self.error(key, expected, quoted(values[key]))

    def _check_tensors(self) -> None:
        """Refuse metadata that contradicts the tensors."""
        tensors, depth = self._names.values(), self._values["block_count"]
        blocks = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
        drafting = {name.split(".")[1] for name in tensors if ".nextn." in name}
        own = depth - self._drafting
        # Those that draft tokens are the last ones, and may be left out of the file.
        if blocks != set(map(str, range(len(blocks)))) or len(blocks) not in (depth, own):
            raise self.error("block_count", f"{depth} blocks of tensors, from blk.0 on", f"{len(blocks)}")
        if drafting != set(map(str, range(own, len(blocks)))):
            expected = f"{self._drafting} blocks with tensors nextn.*, the last ones"
            raise self.error(DRAFTING, expected, quoted(sorted(drafting)))
        if "model.embed_tokens.weight" not in self._names:
            raise ConfigError(f"{self._source}: expected a tensor token_embd.weight; found none.")
        experts = self._values.get("expert_count")
        for tensor in sorted(tensors) if experts is not None else ():
            shape = self._checkpoint.shape(tensor)
            if "_exps." in tensor and shape[:1] != (experts,):
                raise self.error("expert_count", f"{shape[0]}, as tensor {tensor} has of shape {shape}", f"{experts}")

    def _rope_vectors(self) -> dict[str, list[float]]:
        """The tensors that divide rotary frequencies."""
        present = (name for name in ROPE_TENSORS if f"{name}.weight" in self._names)
        vectors = {name: self._checkpoint.read(f"{name}.weight").astype(float) for name in present}
        for name, divisors in vectors.items():
            if divisors.ndim != 1 or not (np.isfinite(divisors) & (divisors > 0)).all():
                raise ConfigError(f"{self._source}, tensor {name}.weight: expected positive numbers; found others.")
        return {name: divisors.tolist() for name, divisors in vectors.items()}

    def _heads(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`head_dim`, and `partial_rotary_factor` if only a part of each head is rotated."""
        if self._port.latent:
            return {}
        values = self._values
        head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
        if values.get("attention.value_length", head_dim) != head_dim:
            raise self.error("attention.value_length", f"{head_dim}", quoted(values["attention.value_length"]))
        rotated = values.get("rope.dimension_count", head_dim)
        if not isinstance(rotated, int) or not 0 < rotated <= head_dim:
            raise self.error("rope.dimension_count", f"1 to {head_dim}", quoted(rotated))
        if rotated != head_dim and not self._port.partial:
            expected = f"{head_dim}, as this architecture rotates whole heads"
            raise self.error("rope.dimension_count", expected, f"{rotated}")
        # The next float above, so that its product with head_dim is not truncated to one feature less.
        share = {} if rotated == head_dim else {"partial_rotary_factor": nextafter(rotated / head_dim, 1)}
        return {"head_dim": head_dim, **share}
