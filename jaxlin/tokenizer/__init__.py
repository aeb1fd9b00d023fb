"""Text to token ids and back, from tokenizer.json, tekken.json, tokenizer.model or the metadata of a GGUF file.

`Tokenizer` also writes conversations with a model's chat template. `read_tokenizer` reads the tokenizer of a folder,
and `require_tokenizer` raises an error if there is none. Tokenizers and templates that could take unbounded time or
memory run in a process of their own.
"""

from jaxlin.tokenizer.tokenizer import Ids, Tokenizer, read_tokenizer, require_tokenizer

__all__ = ["Ids", "Tokenizer", "read_tokenizer", "require_tokenizer"]
