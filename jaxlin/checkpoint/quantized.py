"""What the key ``quantization_config`` of config.json names, and what reads it."""

from jaxlin.checkpoint.bitsandbytes import BitsAndBytes
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.folder import Folder
from jaxlin.checkpoint.packing import Quantized
from jaxlin.checkpoint.scaled import CompressedTensors, FineGrained

REFUSED = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "aqlm": "AQLM",
    "eetq": "EETQ",
}
"""Methods that are known and not read."""

METHODS: dict[str, type[Quantized]] = {
    "bitsandbytes": BitsAndBytes,
    "fp8": FineGrained,
    "compressed-tensors": CompressedTensors,
}
"""``quant_method`` of ``quantization_config``, and what reads it."""


def quantized(folder: Folder, config: ConfigReader) -> "Folder | Quantized":
    """`folder` itself, or its view with packed matrices where config.json says that weights are quantised.

    Raises:
        ConfigError: a method that is not read.
    """
    if config.take("quantization_config", dict, None) is None:
        return folder
    said = config.part("quantization_config")
    return METHODS[quantization_method(said)](folder, said)


def quantization_method(said: ConfigReader) -> str:
    """The ``quant_method`` of a ``quantization_config``.

    Raises:
        ConfigError: one that is not read.
    """
    method = said.take("quant_method", str)
    if method not in METHODS:
        found = f"{method!r}" + (f": {REFUSED[method]} weights are not read" if method in REFUSED else "")
        raise said.error("quant_method", f"one of {', '.join(METHODS)}", f"{found}. Take another file of this model")
    return method
