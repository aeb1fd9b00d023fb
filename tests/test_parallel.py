"""Weights on several devices: four virtual ones in a process of their own, against one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_packed import FORMATS, quantise

import jaxlin

PROGRAM = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np, jaxlin
from jax.sharding import AxisType
folder, out, ids = sys.argv[1], sys.argv[2], list(map(int, sys.argv[3].split(",")))
mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
model, _ = jaxlin.load(folder, linearize=True, mesh=mesh)
for leaf in jax.tree.leaves(model):
    assert len(leaf.sharding.device_set) == 4
weight = model.layers.mlp.down_proj.weight.get_value()
part = max(jax.tree.leaves(weight), key=lambda leaf: leaf.nbytes)
assert part.addressable_shards[0].data.nbytes * 4 == part.nbytes, part.sharding
x = model.embed(ids)
lmap = jaxlin.local_map(model, x)
np.savez(out, jacobian=lmap.jacobian(progress=False), logits=model.unembed(lmap.output), residual=lmap.residual)
"""

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.mark.parametrize("form", ["bfloat16", "nf4, nested", "fp8"])
def test_four_devices_give_what_one_gives(form: str, tmp_path: Path) -> None:
    stored = tiny.torch.bfloat16 if form == "bfloat16" else tiny.torch.float32
    variant = tiny.Variant("LlamaConfig", {**tiny.GQA, **tiny.SIZES, **HEADS}, stored=stored)
    folder = tiny.build(variant, tmp_path / "plain")
    if form in FORMATS:
        folder = quantise(folder, tmp_path / "packed", *FORMATS[form][:2])
    out, ids = tmp_path / "found.npz", tiny.IDS[:9]
    command = [sys.executable, "-c", PROGRAM, str(folder), str(out), ",".join(map(str, ids))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(out)
    model, _ = jaxlin.load(folder, linearize=True)
    lmap = jaxlin.local_map(model, model.embed(ids))
    one = np.asarray(lmap.jacobian())
    np.testing.assert_allclose(found["jacobian"], one, atol=1e-5 * np.abs(one).max())
    np.testing.assert_allclose(found["logits"], model.unembed(lmap.output), atol=2e-5)
    assert found["residual"] <= 3e-6


REFUSED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 3)
import jaxlin
for axis in ("data", "model"):
    try:
        jaxlin.load(sys.argv[1], mesh=jax.make_mesh((3,), (axis,)))
    except jaxlin.JaxlinError as error:
        print(error)
"""


def test_meshes_that_are_refused(checkpoint: Callable[[str], Path]) -> None:
    command = [sys.executable, "-c", REFUSED, str(checkpoint("llama"))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        'Mesh: expected an axis "model"; found data.',
        'Mesh: expected an axis "model" whose size divides num_attention_heads = 4; found 3.',
    ]
