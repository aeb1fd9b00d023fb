"""`ConfigReader`: a config.json read strictly. Every key is consumed, known to be harmless, or refused by name."""

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxlin.errors import ConfigError
from jaxlin.printable import quoted

T = TypeVar("T")
_REQUIRED: Any = object()

HARMLESS: dict[str, str] = {
    **dict.fromkeys(
        ("architectures", "model_type", "auto_map", "_name_or_path", "transformers_version", "transformers.js_config"),
        "names the code that wrote or runs the file",
    ),
    **dict.fromkeys(
        ("torch_dtype", "dtype"), "names the stored dtype, which each tensor says itself; `load(dtype=...)` decides"
    ),
    **dict.fromkeys(
        ("initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop")
        + ("embedding_dropout", "classifier_dropout", "router_aux_loss_coef", "output_router_logits"),
        "read in training only",
    ),
    **dict.fromkeys(
        (
            "use_cache",
            "output_attentions",
            "output_hidden_states",
            "return_dict",
            "use_return_dict",
            "cache_implementation",
        )
        + ("_attn_implementation", "_attn_implementation_internal", "attn_implementation", "use_kernels"),
        "chooses how transformers computes or what it returns, not the values",
    ),
    **dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "unk_token_id")
        + ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
        "belongs to the tokenizer and to generation",
    ),
    **dict.fromkeys(
        ("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups")
        + ("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty")
        + ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores")
        + ("return_dict_in_generate", "remove_invalid_values", "exponential_decay_length_penalty"),
        "belongs to generation",
    ),
    **dict.fromkeys(
        ("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "prefix")
        + (
            "tokenizer_class",
            "chunk_size_feed_forward",
            "torchscript",
            "tf_legacy_loss",
            "use_bfloat16",
            "pruned_heads",
        ),
        "belongs to heads, tasks or exports other than the decoder",
    ),
    "pretraining_tp": "splits the same products into pieces; transformers 5 ignores it",
    "is_llama_config": "a mark of the training code",
    "unsloth_version": "names the code that wrote the file",
    "unsloth_fixed": "a mark that the file was repaired",
}
"""Keys that cannot change the output of the decoder, and why."""

NEUTRAL: dict[str, Any] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
}
"""Keys that are harmless at this one value only."""


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, as a float can hold it, and no truth value."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


class ConfigReader:
    """The keys of one config.json, each taken with its type; `finish` refuses what nobody took.

    Args:
        config: the JSON object.
        source: where it came from, for messages.
    """

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.source = source
        self._config = dict(config)
        self._taken: set[str] = set()
        self._parts: list[ConfigReader] = []

    def take(self, key: str, kind: type[T], default: Any = _REQUIRED) -> T:
        """The value of `key`, of type `kind`; `default` where it is absent or null.

        Raises:
            ConfigError: a missing key without default, or a value of another type.
        """
        self._taken.add(key)
        value = self._config.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(key, f"a value of type {kind.__name__}", "none")
            return default
        if kind is float and is_number(value):
            value = float(value)
        if type(value) is not kind or (kind is float and not is_number(value)):
            raise self.error(key, f"a value of type {kind.__name__}", quoted(value))
        return value

    def optional(self, key: str, kind: type[T], default: T | None) -> T | None:
        """The value of `key`, where null says "none" and only an absent key means the default."""
        return self.take(key, kind, None) if key in self._config else default

    def peek(self, key: str) -> Any:
        """What the config says under `key`, without taking it."""
        return self._config.get(key)

    def override(self, key: str, value: Any) -> None:
        """Put `value` in the place of what the config says under `key`."""
        self._config[key] = value

    def positive(self, key: str, default: Any = _REQUIRED, *, most: int = 2**31 - 1) -> Any:
        """The value of `key`, an integer in 1..`most`; `default` where it is absent or null."""
        value = self.take(key, int, default)
        if value is not None and not 1 <= value <= most:
            raise self.error(key, f"an integer in 1..{most}", quoted(value))
        return value

    def above_zero(self, key: str, value: Any) -> Any:
        """`value`, which was taken under `key`, if it is above 0 or none."""
        if value is not None and value <= 0:
            raise self.error(key, "a number above 0", quoted(value))
        return value

    def part(self, key: str) -> "ConfigReader":
        """The object under `key`, read as strictly: its own `finish` is called with this one's."""
        part = ConfigReader(self.take(key, dict), f"{self.source}, {key}")
        self._parts.append(part)
        return part

    def leave_out(self, *keys: str) -> None:
        """Say that `keys` belong to a part of the model that is not loaded."""
        self._taken.update(keys)

    def expect(self, key: str, value: Any) -> None:
        """Refuse the config unless `key` is absent, null or `value`."""
        self._taken.add(key)
        found = self._config.get(key)
        if found is not None and found != value:
            raise self.error(key, f"{quoted(value)}, the only value this port computes", quoted(found))

    def finish(self) -> None:
        """Refuse every key that was not taken and is not known to be harmless.

        Raises:
            ConfigError: naming the keys.
        """
        for part in self._parts:
            part.finish()
        for key, value in NEUTRAL.items():
            self.expect(key, value)
        unknown = sorted(set(self._config) - self._taken - HARMLESS.keys())
        if unknown := [key for key in unknown if self._config[key] is not None]:
            found = ", ".join(f"{quoted(key)} = {quoted(self._config[key])}"[:120] for key in unknown)
            raise ConfigError(
                f"{self.source}: expected only keys that jaxlin understands; found {found}. They could change the "
                "output, so the model is not loaded. If one is harmless, say so in an issue."
            )

    def error(self, key: str, expected: str, found: str) -> ConfigError:
        """An error about `key`."""
        return ConfigError(f"{self.source}, key {quoted(key)}: expected {expected}; found {found}.")
