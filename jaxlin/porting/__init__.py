"""What a family file is written with: its port, the fields of a config.json, and the keys of a GGUF file."""

from jaxlin.porting.gguf_keys import GGUFPort
from jaxlin.porting.port import Port, TensorRows

__all__ = ["GGUFPort", "Port", "TensorRows"]
