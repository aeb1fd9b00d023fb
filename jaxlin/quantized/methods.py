"""The registry of quantised formats: what the ``quant_method`` of a config.json names.

Loading reads a folder through it (`open_quantized`), and the memory plan asks it for shapes (`quantized_format`). The
blocks of GGUF files have no method: see `jaxlin.quantized.gguf`.
"""

from collections.abc import Callable

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.folder import CheckpointFolder
from jaxlin.common.arguments import checked
from jaxlin.common.printable import quoted
from jaxlin.quantized.awq import AWQ
from jaxlin.quantized.bitsandbytes import BitsAndBytes
from jaxlin.quantized.compressed_tensors import compressed_tensors
from jaxlin.quantized.format import QuantizedFolder, QuantizedFormat
from jaxlin.quantized.fp8 import FineGrainedFP8
from jaxlin.quantized.gptq import GPTQ
from jaxlin.quantized.mxfp4 import MXFP4Experts

METHODS: dict[str, Callable[[ConfigReader], QuantizedFormat]] = {
    "bitsandbytes": BitsAndBytes,
    "fp8": FineGrainedFP8,
    "compressed-tensors": compressed_tensors,
    "gptq": GPTQ,
    "awq": AWQ,
    "mxfp4": MXFP4Experts,
}
"""The format of each ``quant_method`` that is read."""

UNREAD_METHODS = {
    "modelopt": "NVIDIA ModelOpt",
    "fbgemm_fp8": "FBGEMM FP8",
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
"""The names of the other methods in use, for messages."""

ADVICE = "Take another file of this model"


@checked
def open_quantized(folder: CheckpointFolder, config: ConfigReader) -> CheckpointFolder | QuantizedFolder:
    """`folder` itself, or its view with packed matrices where config.json says that weights are quantised.

    Raises:
        ConfigError: a method that is not read.
        CheckpointError: a weight that is stored twice, with codes and with values.
    """
    layout = quantized_format(config)
    return folder if layout is None else QuantizedFolder(folder, layout)


@checked
def quantized_format(config: ConfigReader) -> QuantizedFormat | None:
    """The format of the quantised weights, from config.json alone; None if it says that none are.

    Raises:
        ConfigError: a method that is not read.
    """
    mlx = config.peek("quantization")
    if isinstance(mlx, dict) and "group_size" in mlx:
        raise config.error("quantization", "none", f"that of MLX, whose weights are not read. {ADVICE}")
    if config.take("quantization_config", dict, None) is None:
        return None
    quantization = config.part("quantization_config")
    layout = METHODS[_method(quantization)](quantization)
    quantization.finish()
    return layout


def _method(config: ConfigReader) -> str:
    """The ``quant_method`` of a ``quantization_config``.

    Raises:
        ConfigError: one that is not read.
    """
    expected = f"one of {', '.join(METHODS)}"
    if config.peek("quant_method") is None:
        if config.peek("quant_algo") is not None or config.peek("producer") is not None:
            raise config.error("quant_method", expected, f"none, in files of NVIDIA ModelOpt, not read. {ADVICE}")
        if config.peek("group_size") is not None and config.peek("bits") is not None:
            raise config.error("quant_method", expected, f"none, in files of MLX, not read. {ADVICE}")
    method = config.take("quant_method", str)
    if method not in METHODS:
        reason = f": {UNREAD_METHODS[method]} weights are not read" if method in UNREAD_METHODS else ""
        raise config.error("quant_method", expected, f"{quoted(method)}{reason}. {ADVICE}")
    return method
