"""What the key ``quantization_config`` of config.json names, and what reads it."""

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.common.printable import quoted
from jaxlin.quantized.awq import AWQ
from jaxlin.quantized.bitsandbytes_files import BitsAndBytes
from jaxlin.quantized.compressed import PackQuantized
from jaxlin.quantized.gptq import GPTQ
from jaxlin.quantized.packing import Quantized
from jaxlin.quantized.scaled_files import CompressedTensors, FineGrained

REFUSED = {
    "modelopt": "NVIDIA ModelOpt",
    "fbgemm_fp8": "FBGEMM FP8",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "bitnet": "BitNet",
    "higgs": "HIGGS",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "quark": "AMD Quark",
    "fp_quant": "FP-Quant",
    "auto-round": "AutoRound",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
}
"""Methods that are known and not read."""

METHODS: dict[str, type[Quantized]] = {
    "bitsandbytes": BitsAndBytes,
    "fp8": FineGrained,
    "compressed-tensors": CompressedTensors,
    "gptq": GPTQ,
    "awq": AWQ,
}
"""``quant_method`` of ``quantization_config``, and what reads it."""


def open_quantized(folder: CheckpointFolder, config: ConfigReader) -> "CheckpointFolder | Quantized":
    """`folder` itself, or its view with packed matrices where config.json says that weights are quantised.

    Raises:
        ConfigError: a method that is not read.
    """
    return _reader(folder, config) or folder


def quantized_format(config: ConfigReader) -> Quantized | None:
    """How config.json says that weights are quantised; nothing of them is read.

    Raises:
        ConfigError: a method that is not read.
    """
    return _reader(None, config)


def _reader(folder: CheckpointFolder | None, config: ConfigReader) -> Quantized | None:
    mlx = config.peek("quantization")
    if isinstance(mlx, dict) and "group_size" in mlx:
        raise config.error("quantization", "none", f"that of MLX, whose weights are not read. {ANOTHER}")
    if config.take("quantization_config", dict, None) is None:
        return None
    said = config.part("quantization_config")
    method = METHODS[quantization_method(said)]
    if method is CompressedTensors and said.peek("format") == "pack-quantized":
        method = PackQuantized
    reader = method(folder, said)
    said.finish()
    return reader


def quantization_method(said: ConfigReader) -> str:
    """The ``quant_method`` of a ``quantization_config``.

    Raises:
        ConfigError: one that is not read.
    """
    expected = f"one of {', '.join(METHODS)}"
    if said.peek("quant_method") is None:
        if said.peek("quant_algo") is not None or said.peek("producer") is not None:
            raise said.error("quant_method", expected, f"none: this is a file of NVIDIA ModelOpt, not read. {ANOTHER}")
        if said.peek("group_size") is not None and said.peek("bits") is not None:
            raise said.error("quant_method", expected, f"none: this is a file of MLX, not read. {ANOTHER}")
    method = said.take("quant_method", str)
    if method not in METHODS:
        found = f"{quoted(method)}" + (f": {REFUSED[method]} weights are not read" if method in REFUSED else "")
        raise said.error("quant_method", expected, f"{found}. {ANOTHER}")
    return method


ANOTHER = "Take another file of this model"
"""What to do."""
