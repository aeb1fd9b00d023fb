"""Weights on several devices: four virtual ones in a process of their own, against one."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from command import jaxlin_command
from quantised_files import FORMATS, quantise, unquantise

import jaxlin
from jaxlin.spectrum.prediction_ranks import map_ranks
from jaxlin.steering.generation import generate

PROGRAM = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np, jaxlin
from jaxlin.checkpoint.safetensors import SafetensorsFile
from jaxlin.quantized import BFloat16
folder, out, ids, split = sys.argv[1], sys.argv[2], list(map(int, sys.argv[3].split(","))), int(sys.argv[4])
mesh = jax.make_mesh((4 // split, split), ("rows", "model"))
reads, read = [], SafetensorsFile.read_slice
SafetensorsFile.read_slice = lambda self, name, index: reads.append((name, *index)) or read(self, name, index)
model, tokenizer = jaxlin.load(folder, linearize=True, mesh=mesh)
for leaf in jax.tree.leaves(model):
    assert len(leaf.sharding.device_set) == 4
weight = model.layers.mlp.down_proj.weight.get_value()
part = max(jax.tree.leaves(weight), key=lambda leaf: leaf.nbytes)
assert part.addressable_shards[0].data.nbytes * split == part.nbytes, part.sharding
if isinstance(weight, BFloat16):
    # Each device's rows by themselves, and all of them where columns are split: once.
    for name, times in (("gate_proj", split), ("down_proj", 1)):
        spans = [index for n, *index in reads if n == f"model.layers.0.mlp.{name}.weight" and index != [slice(0, 0)]]
        assert len(spans) == times, spans
x = model.embed(ids)
lmap = jaxlin.local_map(model, x)
units = np.eye(lmap.shape[0], dtype=np.float32)[:8]
assert len(lmap.rmatvec(units).addressable_shards[0].data) * 4 == 8 * split, lmap.rmatvec(units).sharding
attribution = jaxlin.attribute(model, x, 7)
np.savez(
    out, jacobian=lmap.jacobian(progress=False), logits=model.unembed(lmap.output), residual=lmap.residual,
    values=lmap.svd(4, method="krylov").s, tokens=attribution.tokens, heads=attribution.heads,
    text=jaxlin.generate(model, tokenizer, ids, 8, stop_token_ids=()).tokens,
)
"""

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("form", "split"), [("bfloat16", 4), ("bfloat16", 2), ("nf4, nested", 1), ("fp8", 4), ("gptq, mixed", 4)]
)
def test_four_devices_give_what_one_gives(form: str, split: int, tmp_path: Path) -> None:
    """Weights over all four, over pairs with rows over two, and rows alone."""
    stored = tiny.torch.bfloat16 if form == "bfloat16" else tiny.torch.float32
    variant = tiny.Variant("LlamaConfig", {**tiny.GQA, **tiny.SIZES, **HEADS}, stored=stored)
    folder = tiny.build(variant, tmp_path / "plain")
    if form != "bfloat16":
        folder = quantise(folder, tmp_path / "packed", *FORMATS[form.removesuffix(", mixed")][:2])
    if form.endswith(", mixed"):
        unquantise(folder, "model.layers.1.mlp.down_proj")
    out, ids = tmp_path / "found.npz", tiny.IDS[:9]
    command = [sys.executable, "-c", PROGRAM, str(folder), str(out), ",".join(map(str, ids)), str(split)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(out)
    model, _ = jaxlin.load(folder, linearize=True)
    lmap = jaxlin.local_map(model, model.embed(ids))
    one = np.asarray(lmap.jacobian())
    np.testing.assert_allclose(found["jacobian"], one, atol=1e-5 * np.abs(one).max())
    np.testing.assert_allclose(found["logits"], model.unembed(lmap.output), atol=2e-5)
    assert found["residual"] <= 3e-6
    attribution = jaxlin.attribute(model, model.embed(ids), 7)
    for name, expected in (
        ("values", lmap.svd(4).s),
        ("tokens", attribution.tokens),
        ("heads", attribution.heads),
    ):
        np.testing.assert_allclose(found[name], expected, atol=1e-5 * np.abs(expected).max())
    model, tokenizer = jaxlin.load(folder)
    assert found["text"].tolist() == generate(model, tokenizer, ids, 8, stop_token_ids=()).tokens


def test_two_processes(tmp_path: Path) -> None:
    """They give what one gives; where one dies the other ends with an error, and both go on from the rows there are."""
    folder = tiny.build(tiny.Variant("LlamaConfig", {**tiny.GQA, **tiny.SIZES}), tmp_path / "model")
    out, ids = tmp_path / "j.npy", tiny.IDS[:5]

    def together(dies_after: int) -> list[subprocess.CompletedProcess[str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(Path(__file__).parents[1] / "multihost.py"), str(folder), str(out)]
        running = [
            subprocess.Popen(
                [*command, ",".join(map(str, ids)), str(index), str(port), str(dies_after)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]
        try:
            return [
                subprocess.CompletedProcess(each.args, each.returncode, *said)
                for each in running
                for said in (each.communicate(timeout=240),)
            ]
        finally:
            for each in running:
                each.kill()

    first, second = together(dies_after=3)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode != 0, first.stdout
    assert not out.exists()
    assert sum(rows for rows, _ in json.loads((tmp_path / "j.npy.partial.json").read_text())["blocks"]) == 12
    done = together(dies_after=-1)
    assert [each.returncode for each in done] == [0, 0], done[0].stderr[-2000:]
    model, _ = jaxlin.load(folder)
    lmap = jaxlin.local_map(model, model.embed(ids))
    one = np.asarray(lmap.jacobian())
    calls = (len(one) - 12) // 4
    np.testing.assert_allclose(np.load(out), one, atol=1e-5 * np.abs(one).max())
    values = lmap.svd(4).s
    for each in done:
        said = json.loads(each.stdout.splitlines()[-1])  # the collectives print too
        assert said["mesh"] == {"rows": 2, "model": 2}
        assert said["calls"] == calls
        assert said["residual"] <= 3e-6
        np.testing.assert_allclose(said["dense"], values, rtol=1e-5)
        np.testing.assert_allclose(said["krylov"], values, rtol=1e-5)
        assert said["stable rank"] == pytest.approx(map_ranks(lmap).joint.stable, rel=1e-5)
        tokens = jaxlin.attribute(model, lmap.x, 7).tokens
        np.testing.assert_allclose(said["tokens"], tokens, atol=1e-5 * np.abs(tokens).max())


def test_explain_on_devices() -> None:
    """The command makes its mesh by itself."""
    said = [
        json.loads(jaxlin_command("explain", "The cat sat", "--json", *more).stdout)
        for more in ((), ("--devices", "4"))
    ]
    one, four = said
    assert four["residual"] <= 3e-6
    np.testing.assert_allclose(four["contributions"], one["contributions"], atol=1e-5 * abs(one["logit"]))
    np.testing.assert_allclose(
        [each["value"] for each in four["triplets"]], [each["value"] for each in one["triplets"]], rtol=1e-5
    )


REFUSED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 3)
import jaxlin
for mesh in (jax.make_mesh((3,), ("data",)), jax.make_mesh((3,), ("model",)), 4):
    try:
        jaxlin.load(sys.argv[1], mesh=mesh)
    except jaxlin.JaxlinError as error:
        print(error)
"""


def test_meshes_that_are_refused(checkpoint: Callable[[str], Path]) -> None:
    command = [sys.executable, "-c", REFUSED, str(checkpoint("llama"))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[:2] == [
        'Mesh: expected an axis "model", and "rows" or none beside it; found data.',
        'Mesh: expected an axis "model" whose size divides num_attention_heads = 4; found 3.',
    ]
    assert said[2].startswith("Devices: expected a number in 1..3, the devices there are; found 4. On a CPU, ")
