"""GGUF: the metadata, the tensors, the tokenizer and the files of a checkpoint that is split."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

import jaxlin
from benchmarks.fuzz.draws import EDGES, FLOATS, TEXTS, Draw
from benchmarks.fuzz.readers import reader
from benchmarks.fuzz.samples import CONFIGS, tensors
from jaxlin.checkpoint.config import ConfigReader
from jaxlin.checkpoint.gguf import GGUFFile
from jaxlin.loading.registry import port_for
from jaxlin.loading.shapes import shapes_of
from jaxlin.loading.translated_gguf import TranslatedGGUF
from jaxlin.tokenizer import Tokenizer

ALIGNMENT = 32
CODES = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<B"), "u64": (10, "<Q"), "f64": (12, "<d")}
TEXT, ARRAY = 8, 9
ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3", "gemma2": "gemma2", "phi2": "phi", "olmo2": "olmo2"}
"""For each architecture, the name of the config in `CONFIGS` that its file is written from."""


class Pair(NamedTuple):
    """A key of the metadata; the type is a name of `CODES`, "text", or that of the entries of a list."""

    key: str
    kind: str
    value: Any


class Tensor(NamedTuple):
    """A tensor: its axes, the fastest first, the number of its type, its place in the data, and its bytes."""

    name: str
    axes: list[int]
    kind: int
    offset: int
    raw: bytes


def sample(architecture: str) -> tuple[list[Pair], list[Tensor]]:
    """A valid file of two layers with a vocabulary."""
    config, before = CONFIGS[ARCHITECTURES[architecture]], f"{architecture}."
    epsilon = "layer_norm_epsilon" if architecture == "phi2" else "layer_norm_rms_epsilon"
    numbers: dict[str, Any] = {
        "block_count": 2,
        "context_length": 32,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": 16,
        "attention.value_length": 16,
        f"attention.{epsilon}": 1e-6,
        "rope.freq_base": 1e4,
    }
    numbers |= {"rope.dimension_count": 8} if architecture == "phi2" else {}
    numbers |= {"attention.sliding_window": 4} if architecture in ("gemma2", "olmo2") else {}
    pairs = [Pair("general.architecture", "text", architecture)]
    pairs += [Pair(before + key, "f32" if isinstance(n, float) else "u32", n) for key, n in numbers.items()]
    letters = [chr(0x41 + n) for n in range(45)]
    pairs += [
        Pair("tokenizer.ggml.model", "text", "gpt2"),
        Pair("tokenizer.ggml.pre", "text", "gpt-2"),
        Pair("tokenizer.ggml.tokens", "[text]", [*letters, letters[0] + letters[1], "<s>", "</s>"]),
        Pair("tokenizer.ggml.token_type", "[i32]", [1] * 46 + [3, 3]),
        Pair("tokenizer.ggml.merges", "[text]", [f"{letters[0]} {letters[1]}"]),
        Pair("tokenizer.ggml.bos_token_id", "u32", 46),
        Pair("tokenizer.ggml.add_bos_token", "bool", 1),
    ]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names, placed, offset = gguf.get_tensor_name_map(arch, 2), [], 0
    for name, array in tensors(ARCHITECTURES[architecture]).items():
        stem, _, kind = name.rpartition(".")
        ggml = names.get_name(stem)
        if ggml is not None:
            placed.append(Tensor(f"{ggml}.{kind}", list(array.shape[::-1]), 0, offset, array.tobytes()))
            offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return pairs, placed


def file_bytes(pairs: Sequence[Pair], placed: Sequence[Tensor], counts: tuple[int, int] | None = None) -> bytes:
    """The bytes of the file; a value that does not fit its type is replaced by one that does."""
    out = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(placed), len(pairs))))
    for pair in pairs:
        out += _text(pair.key) + _typed(pair.kind, pair.value)
    for tensor in placed:
        out += _text(tensor.name) + struct.pack("<I", len(tensor.axes))
        out += b"".join(struct.pack("<Q", n % 2**64) for n in tensor.axes)
        out += struct.pack("<IQ", tensor.kind % 2**32, tensor.offset % 2**64)
    out += bytes(-len(out) % ALIGNMENT)
    sound = _sound(placed)
    data = bytearray(max((tensor.offset + len(tensor.raw) for tensor in sound), default=0))
    for tensor in sound:
        data[tensor.offset : tensor.offset + len(tensor.raw)] = tensor.raw
    return out + bytes(data)


def _sound(placed: Sequence[Tensor]) -> list[Tensor]:
    """The tensors whose offsets can have data."""
    return [tensor for tensor in placed if 0 <= tensor.offset < 2**20]


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _typed(kind: str, value: Any) -> bytes:
    if kind.startswith("["):
        inner = kind[1:-1]
        code = TEXT if inner == "text" else ARRAY if inner.startswith("[") else CODES[inner][0]
        skip = 4  # the type of an entry stands once, before their number
        return struct.pack("<IIQ", ARRAY, code, len(value)) + b"".join(_typed(inner, each)[skip:] for each in value)
    if kind == "text":
        return struct.pack("<I", TEXT) + _text(str(value))
    code, layout = CODES[kind]
    size = struct.calcsize(layout)
    try:
        return struct.pack("<I", code) + struct.pack(layout, value)
    except (struct.error, OverflowError, TypeError):
        return struct.pack("<I", code) + b"\x07" * size


def other_pair(draw: Draw, pairs: list[Pair]) -> None:
    """Remove a key, repeat it, add a new one, or give one a value of any type."""
    index = draw.randrange(len(pairs))
    pair, change = pairs[index], draw.randrange(6)
    architecture = str(pairs[0].value) if pairs[0].key == "general.architecture" else "llama"
    if change == 0:
        del pairs[index]
    elif change == 1:
        keys = [each.key for each in pairs] + [f"{architecture}.{key}" for key in MORE] + list(OTHERS) + TEXTS
        pairs.append(pair._replace(key=draw.choice(keys)))
    elif change == 2:
        kind = draw.choice(["text", "u32", "i32", "f32", "bool", "u64", "f64"])
        pairs[index] = Pair(pair.key, kind, _value(draw, kind))
    elif change == 3:
        kind = draw.choice(["text", "u32", "f32", "bool", "[u32]"])
        entries = [_value(draw, kind) for _ in range(draw.choice([0, 1, 2, 48, 2000]))]
        pairs[index] = Pair(pair.key, f"[{kind}]", entries)
    elif isinstance(pair.value, list) and pair.value and pair.kind.startswith("["):
        entries, kind = list(pair.value), pair.kind[1:-1]
        entries[draw.randrange(len(entries))] = _value(draw, kind)
        pairs[index] = pair._replace(value=entries if draw.rarely(0.7) else entries[:-1])
    elif isinstance(pair.value, int | float):
        pairs[index] = pair._replace(value=draw.choice([pair.value + 1, pair.value * 2, *EDGES[:22]]))


MORE = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor", "attention.sliding_window_pattern")
OTHERS = ("general.alignment", "split.count", "split.no", "tokenizer.ggml.add_eos_token", "tokenizer.chat_template")


def _value(draw: Draw, kind: str) -> Any:
    if kind.startswith("["):
        return [1, 2]
    return draw.choice(TEXTS) if kind == "text" else draw.choice(FLOATS) if kind[0] == "f" else draw.integer()


def other_tensor(draw: Draw, placed: list[Tensor]) -> None:
    """Remove a tensor, rename or move it, give it another shape or type, or fuse more heads than there are."""
    index = draw.randrange(len(placed))
    tensor, change = placed[index], draw.randrange(6)
    if change == 0:
        del placed[index]
    elif change == 1:
        names = ["blk.0.attn_qkv.weight", "rope_freqs.weight", "blk.99.attn_q.weight", "blk.00.attn_q.weight", *TEXTS]
        placed[index] = tensor._replace(name=draw.choice([*names, tensor.name.replace("0", "1")]))
    elif change == 2:
        placed[index] = tensor._replace(
            axes=draw.choice([tensor.axes[::-1], [*tensor.axes, 1], [draw.axis()] * 2, [], [0]])
        )
    elif change == 3:
        placed[index] = tensor._replace(kind=draw.choice([*range(42), 2**32 - 1]))
    elif change == 4:
        placed[index] = tensor._replace(offset=draw.choice([0, 1, tensor.offset + ALIGNMENT, draw.axis()]))
    elif tensor.raw:
        raw = bytearray(tensor.raw)
        raw[draw.randrange(len(raw))] = 0xFF
        placed[index] = tensor._replace(raw=bytes(raw))


def changed(draw: Draw) -> bytes:
    """A file with one to three changes."""
    pairs, placed = sample(draw.choice(list(ARCHITECTURES)))
    for _ in range(draw.choice([1, 1, 2, 3])):
        other_pair(draw, pairs) if draw.rarely(0.6) else other_tensor(draw, placed)
    if draw.rarely(0.03):  # a fused projection of as many rows as the metadata says there are heads for
        fused = Tensor(
            "blk.0.attn_qkv.weight", [32, 64], 0, placed[-1].offset + len(placed[-1].raw), bytes(4 * 32 * 64)
        )
        fused = fused._replace(offset=-(-fused.offset // ALIGNMENT) * ALIGNMENT)
        placed = [each for each in placed if not each.name.startswith("blk.0.attn_")] + [fused]
        pairs = [Pair(pair.key, "u32", 2**29) if "head_count" in pair.key else pair for pair in pairs]
    counts = (draw.integer() % 2**64, draw.integer() % 2**64) if draw.rarely(0.05) else None
    raw = file_bytes(pairs, placed, counts)
    return draw.bytes_like(raw) if draw.rarely(0.2) else raw


@reader(4)
def gguf_header(draw: Draw, folder: Path) -> Callable[[], Any]:
    """Read the header, its config and every tensor."""
    path = folder / "m.gguf"
    path.write_bytes(changed(draw))

    def read() -> None:
        model = TranslatedGGUF(GGUFFile(path))
        fields = ConfigReader(model.config, str(path))
        port_for(fields.peek("model_type")).translate(fields)
        fields.finish()
        for name in sorted(model.names()):
            if len(model.shape(name)) == 3:
                model.read_expert(name, 0)
                continue
            model.read_rows(name, 0, 1)
            model.read(name)

    return read


@reader(2)
def gguf_tokenizer(draw: Draw, folder: Path) -> Callable[[], Any]:
    """Read the vocabulary of a file, and encode a text with it."""
    pairs, _ = sample("llama")
    other, vocabulary = pairs[:-7], pairs[-7:]
    for _ in range(draw.randint(1, 3)):
        other_pair(draw, vocabulary)
    pairs = other + vocabulary
    path = folder / "m.gguf"
    path.write_bytes(file_bytes(pairs, []))

    def read() -> None:
        tokenizer = Tokenizer.from_gguf(GGUFFile(path).config, str(path))
        tokenizer.decode(tokenizer.encode("a b"))

    return read


@reader(1)
def gguf_load(draw: Draw, folder: Path) -> Callable[[], Any]:
    """Load the file, or plan its memory."""
    path = folder / "m.gguf"
    path.write_bytes(changed(draw))
    if draw.rarely(0.3):
        return lambda: shapes_of(path, None, "float32", "gate")
    return lambda: jaxlin.load(path)


@reader(1)
def gguf_shards(draw: Draw, folder: Path) -> Callable[[], Any]:
    """A checkpoint in two files, which may contradict each other."""
    pairs, placed = sample("llama")
    half = len(placed) // 2
    for number, part in enumerate((placed[:half], placed[half:])):
        first = part[0].offset
        own = [*(pairs if number == 0 else []), Pair("split.no", "u32", number), Pair("split.count", "u32", 2)]
        own.append(Pair("split.tensors.count", "i32", len(placed)))
        part = [tensor._replace(offset=tensor.offset - first) for tensor in part]
        if draw.rarely(0.5):
            other_pair(draw, own)
        if draw.rarely(0.3):
            other_tensor(draw, part)
        raw = file_bytes(own, part)
        (folder / f"m-0000{number + 1}-of-00002.gguf").write_bytes(draw.bytes_like(raw) if draw.rarely(0.1) else raw)
    path = folder / draw.choice(["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"])

    def read() -> None:
        file = GGUFFile(path)
        for name in sorted(file.names()):
            np.asarray(file.read(name))

    return read
