"""What tells one model from another."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxlin
from jaxlin.nn.fingerprints import _sums, fingerprint


def test_every_bit_counts() -> None:
    model, _ = jaxlin.load()
    leaves, structure = jax.tree.flatten(model)
    before = fingerprint(model)
    assert fingerprint(jaxlin.load(linearize=True)[0]) == before
    changes = {"a bit of it": lambda raw: raw.__setitem__(len(raw) // 2, raw[len(raw) // 2] ^ 1)}
    changes |= {"two values swapped": lambda raw: raw.__setitem__(slice(0, 4), raw[[2, 3, 0, 1]])}
    for at, leaf in enumerate(leaves):
        for name, change in changes.items():
            values = np.array(leaf)
            change(values.reshape(-1).view(np.uint8))
            if np.array_equal(values, leaf):
                continue
            changed = [*leaves[:at], jnp.asarray(values), *leaves[at + 1 :]]
            assert fingerprint(jax.tree.unflatten(structure, changed)) != before, (at, name)


def test_the_sums() -> None:
    """The same in plain Python, for every dtype that is stored."""
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 256, (3, 5, 8), np.uint8)]
    arrays += [arrays[0].view(kind) for kind in (np.int8, np.uint16, jnp.bfloat16, np.float16, np.float32, np.int32)]
    arrays += [draw.random(7) > 0.5, np.float32(3.5)]
    for array in arrays:
        width = {1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
        bits = np.asarray(array).reshape(-1).view(width).tolist()
        expected = sum(b * (2 * 2_654_435_761 * i + 1) for i, b in enumerate(bits)) % 2**32
        assert int(_sums([jnp.asarray(array)])[0]) == expected, array.dtype
