"""Files of lenses: pickles, instruction by instruction, and safetensors with their metadata."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.draws import TEXTS, Draw, json_text
from benchmarks.fuzz.folders import file_bytes, other_arrays, other_header, packed_bytes
from benchmarks.fuzz.readers import reader
from jaxlin import lens

CALLS = [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nSize\n"]
CALLS += [b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"cbuiltins\neval\n", b"cjaxlin\nload\n"]


class Instructions(bytes):
    """Bytes that are put into a pickle unchanged."""

    __slots__ = ()


def pickled(value: Any) -> bytes:
    """The instructions of a pickle that build a plain value."""
    if isinstance(value, Instructions):
        return bytes(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        raw = value.to_bytes((value.bit_length() // 8) + 1, "little", signed=True)[:255]
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(each) for pair in value.items() for each in pair) + b"u"
    start, end = (b"](", b"e") if isinstance(value, list) else (b"(", b"t")
    return start + b"".join(map(pickled, value)) + end


def tensor(draw: Draw, key: str, d: int, hostile: bool) -> Instructions:
    """A matrix of `d` rows and columns, or one that is declared as something else."""
    kind, size, start, shape, strides, call = "FloatStorage", d * d, 0, (d, d), (d, 1), CALLS[0]
    if hostile:
        change = draw.randrange(6)
        if change == 0:
            kind = draw.choice(
                ["HalfStorage", "DoubleStorage", "BFloat16Storage", "BoolStorage", "UntypedStorage", "X"]
            )
        elif change == 1:
            size = draw.integer()
        elif change == 2:
            start = draw.choice([draw.integer(), None, 1.5, "0"])
        elif change == 3:
            shape = tuple(draw.axis() for _ in range(draw.choice([0, 1, 2, 3, 64, 65])))
            strides = tuple(draw.axis() for _ in shape)
        elif change == 4:
            shape = strides = draw.choice([(2**62, 0), (0, 2**62), (d * d,), (1, d, d)])
        else:
            call = draw.choice(CALLS)
    storage = b"(" + pickled("storage") + b"ctorch\n" + kind.encode() + b"\n" + pickled(key) + pickled("cpu")
    storage += pickled(size) + b"tQ"
    last = b"\x89" + b"ccollections\nOrderedDict\n)R"
    return Instructions(call + b"(" + storage + pickled(start) + pickled(shape) + pickled(strides) + last + b"tR")


@reader(4)
def pt(draw: Draw, folder: Path) -> Callable[[], Any]:
    """A ``.pt`` file with changes in its archive, its instructions or its storages."""
    d, layers, change = draw.choice([1, 2, 3]), draw.choice([1, 2]), draw.randrange(6)
    matrices = {layer: tensor(draw, str(layer), d, change == 0) for layer in range(layers)}
    value: dict[Any, Any] = {
        "J": matrices,
        "n_prompts": 2,
        "source_layers": list(matrices),
        "d_model": d,
        "metadata": {},
    }
    if change == 1:
        entries = [*TEXTS, "jacobian_sum", "J", 3, matrices[0], None, [], {}, draw.integer(), draw.choice([2.0, True])]
        value[draw.choice(list(value))] = draw.choice(entries)
        value[draw.choice([*TEXTS, "n_done", 7])] = draw.choice(entries)
    text = b"\x80\x02" + pickled(value) + b"."
    if change == 2:
        parts = [
            b"]",
            b"}",
            b")",
            b"(",
            b"q\1",
            b"h\1",
            b"e",
            b"u",
            b"t",
            b"a",
            b"s",
            b"\x85",
            b"\x87",
            b"R",
            b"Q",
            b"0",
        ]
        parts += [b"2", b"N", pickled(5), pickled("a"), *CALLS, bytes(matrices[0]), b"\x94", b"\x93"]
        parts += [b"B" + struct.pack("<I", 2**31), b"\x8d" + struct.pack("<Q", 2**63), b"j\xff\xff\xff\xff"]
        text = b"\x80\x02" + b"".join(draw.choice(parts) for _ in range(draw.choice([4, 30, 300]))) + b"."
    elif change == 3:
        text = draw.bytes_like(text)
    elif change == 4 and draw.rarely(0.1):  # one long list that many calls would copy
        sizes = b"ctorch\nSize\nh\1\x85R" * 5000
        text = b"\x80\x02](" + b"N" * 20_000 + b"eq\1(" + sizes + b"t."
    path = folder / "lens.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if draw.rarely(0.1) else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", text)
        for layer in range(layers):
            archive.writestr(f"archive/data/{layer}", np.ones(d * d - draw.rarely(0.05), np.float32).tobytes())
        if draw.rarely(0.05):
            archive.writestr(draw.choice(["archive/byteorder", "../../a", "other/data.pkl"]), b"big")
    if change == 5:
        path.write_bytes(draw.bytes_like(path.read_bytes()))
    return lambda: repr(lens.load(path))


@reader(2)
def lens_file(draw: Draw, folder: Path) -> Callable[[], Any]:
    """A lens in safetensors, with changes."""
    note: Any = {"layers": [0, 1], "prompts": 3, "estimator": "x", "skip_first_positions": 1, "target_layer": 3}
    arrays, change = {"J": np.ones((2, 3, 3), np.float32)}, draw.randrange(4)
    if change == 0:
        note = draw.json_like(note, [*note, "mean_square", "squared_deviations"])
    text = draw.choice(TEXTS) if draw.rarely(0.05) else json_text(note)
    header, data = packed_bytes(other_arrays(draw, arrays) if change == 1 else arrays, {"jaxlin_lens": text})
    path = folder / "lens.safetensors"
    path.write_bytes(file_bytes(draw, other_header(draw, header) if change == 2 else header, data))
    return lambda: repr(lens.load(path))
