"""Text to token ids and back, from tokenizer.json, tekken.json, tokenizer.model or the metadata of a GGUF file.

Others use `Tokenizer`; `tokenizer_of`, which reads that of a folder; and `required`, which refuses to do without one.
"""

from jaxlin.tokenizer.loading import required, tokenizer_of
from jaxlin.tokenizer.tokenizer import Ids, Tokenizer

__all__ = ["Ids", "Tokenizer", "required", "tokenizer_of"]
