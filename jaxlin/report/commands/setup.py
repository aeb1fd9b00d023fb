"""What commands do before their own work: JAX's settings, the files to write, the model and the prompt."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def configure_jax(dtype: str, devices: int | None = None) -> None:
    """Set JAX's precision and number of devices, and a cache for compiled programs in the user's cache folder."""
    import jax

    from jaxlin.common.devices import prefer_library_products

    prefer_library_products()
    if devices is not None:
        # Where there is only a CPU, it acts as that many devices.
        jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", dtype == "float64")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlin"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    # XLA logs a screenful for each program that it reads from the cache on a CPU; errors that matter are raised.
    jax.config.update("jax_logging_level", "CRITICAL")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def load_model(model: str | None, ignore_config_keys: Sequence[str] | None, **options: Any) -> tuple[Any, Any]:
    """A model and its tokenizer; the options are those of `jaxlin.load`."""
    from jaxlin.common.progress import stage
    from jaxlin.loading import load

    with stage("loading the model"):
        return load(model, ignore_config_keys=ignore_config_keys or (), **options)


def encode(tokenizer: Any, text: str, *, bos: bool | None = None, chat: bool = False) -> list[int]:
    """The token ids of a prompt, with `chat` those of the beginning of the model's answer to it.

    Raises:
        TokenizerError: the model has no tokenizer, or no chat template.
        PromptError: the text has no tokens.
    """
    from jaxlin.nn.prompt import PromptError
    from jaxlin.tokenizer import require_tokenizer

    if chat:
        messages = [{"role": "user", "content": text}]
        return require_tokenizer(tokenizer, "A chat").chat(messages, add_generation_prompt=True)
    ids = require_tokenizer(tokenizer, "A prompt").encode(text, bos)
    if not text:
        raise PromptError("Prompt: expected a text of one token or more; found none.")
    return ids
