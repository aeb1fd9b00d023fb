"""Lenses: fits against autograd of transformers, whole and frozen; readings against its logits; files against torch."""

import dataclasses
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
import safetensors.numpy
import tiny
import torch

import jaxlin
from jaxlin import lens as lenses
from jaxlin.attribution.layer_streams import stream_contributions
from jaxlin.common.errors import CheckpointError
from jaxlin.lens import running_mean
from jaxlin.lens.jacobian_lens import check_lens
from jaxlin.lens.pt_reader import read_pt
from jaxlin.lens.pt_writer import write_pt
from jaxlin.lens.running_mean import RunningMean
from jaxlin.nn.prompt import PromptError

SKIP = 2
PROMPTS = [tiny.IDS, [*tiny.IDS[3:], 5, 1]]


def of_prompt(folder: Path, ids: list[int], rule: str | None) -> np.ndarray:
    """The definition: a backward pass of each feature of the last stream, from all valid positions; their mean."""
    model = oracle.load(folder, torch.float64)
    with oracle.lifted(model), oracle.frozen(model, rule) if rule else oracle.lifted(model):
        streams: list[torch.Tensor] = []
        for block in model.base_model.layers:
            block.register_forward_hook(
                lambda m, i, output: streams.append(output if isinstance(output, torch.Tensor) else output[0])
            )
        x = model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
        model(inputs_embeds=x)
        valid = slice(SKIP, len(ids) - 1)
        rows = []
        for feature in range(x.shape[-1]):
            output = streams[-1][0, valid, feature].sum()
            slopes = torch.autograd.grad(output, streams[:-1], retain_graph=True)
            rows.append(torch.stack([slope[0, valid].mean(0) for slope in slopes]))
    return torch.stack(rows, 1).numpy()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("llama, biases", None),
        ("gemma2", None),
        ("gemma3_text", "gate"),
        ("phi", None),
        ("phi", "gate"),
        ("olmo2", "half"),
        ("qwen3", "up"),
        ("mistral, window", "gate"),
        ("llama, rope dynamic", None),
    ],
)
def test_against_transformers(name: str, rule: Any, checkpoint: Callable[[str], Path], x64: None) -> None:
    folder = checkpoint(name)
    model, _ = jaxlin.load(folder, dtype="float64")
    expected = np.stack([of_prompt(folder, ids, rule) for ids in PROMPTS])
    fitted = lenses.fit(model, PROMPTS, frozen=rule is not None, rule=rule, skip_first=SKIP, progress=False)
    assert (fitted.source_layers, fitted.n_prompts) == (tuple(range(len(expected[0]))), 2)
    np.testing.assert_allclose(fitted.maps, expected.mean(0), atol=1e-12 * np.abs(expected).max())
    spread = expected.std(0, ddof=1) / 2**0.5
    error = np.linalg.norm(spread, axis=(1, 2)) / np.linalg.norm(expected.mean(0), axis=(1, 2))
    np.testing.assert_allclose(fitted.error, error, rtol=1e-9)
    some = lenses.fit(
        model,
        PROMPTS,
        frozen=rule is not None,
        rule=rule,
        skip_first=SKIP,
        source_layers=[-2, 1],
        dim_batch=7,
        progress=False,
    )
    assert some.source_layers == (1, len(expected[0]) - 1)
    np.testing.assert_allclose(some.maps, fitted.maps[[1, -1]], atol=1e-12 * np.abs(expected).max())


def test_longer_prompts_are_cut_and_short_ones_left_out(checkpoint: Callable[[str], Path], x64: None) -> None:
    model, _ = jaxlin.load(checkpoint("llama"), dtype="float64")
    with pytest.warns(UserWarning, match="1 of 2 prompts have fewer than 4 tokens"):
        fitted = lenses.fit(model, [tiny.IDS, tiny.IDS[:3]], skip_first=SKIP, max_seq_len=7, progress=False)
    whole = lenses.fit(model, [tiny.IDS[:7]], skip_first=SKIP, progress=False)
    np.testing.assert_allclose(fitted.maps, whole.maps, atol=1e-14)
    assert np.isnan(whole.error).all()


class TestRead:
    def test_the_logit_lens_is_the_models_own_head(self, checkpoint: Callable[[str], Path], x64: None) -> None:
        folder = checkpoint("gemma2")
        model, _ = jaxlin.load(folder, dtype="float64", linearize=True)
        found = lenses.read(model, model.embed(tiny.IDS), k=5, tokens=(9, 3), positions=(0, -1))
        reference = oracle.load(folder, torch.float64)
        with torch.no_grad(), oracle.lifted(reference):
            hidden = reference(input_ids=torch.tensor([tiny.IDS]), output_hidden_states=True).hidden_states[1:]
            normed = [reference.base_model.norm(h) for h in hidden[:-1]] + [hidden[-1]]
            logits = torch.stack([reference.lm_head(h) for h in normed])[:, 0]
            cap = reference.config.final_logit_softcapping
            logits = (cap * torch.tanh(logits / cap))[:, [0, -1]].numpy()
        assert (found.layers, found.positions) == (tuple(range(len(hidden))), (0, len(tiny.IDS) - 1))
        np.testing.assert_array_equal(found.ids, np.argsort(-logits, axis=-1)[..., :5])
        np.testing.assert_allclose(found.logits, np.sort(logits)[..., ::-1][..., :5], atol=1e-11)
        chosen = logits[..., [9, 3]]
        np.testing.assert_array_equal(found.ranks, (logits[..., None, :] > chosen[..., None]).sum(-1))
        softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(found.probabilities, np.sort(softmax)[..., ::-1][..., :5], atol=1e-12)

    def test_a_lens_is_what_is_read_through(self, checkpoint: Callable[[str], Path], x64: None) -> None:
        model, _ = jaxlin.load(checkpoint("llama"), dtype="float64")
        x = model.embed(tiny.IDS)
        fitted = lenses.fit(model, PROMPTS, source_layers=(2, 0), skip_first=SKIP, progress=False)
        found = lenses.read(model, x, fitted)
        assert found.layers == (0, 2, 3)
        for row, layer in enumerate((0, 2)):
            h = jaxlin.local_map(model, x, source=("resid_post", layer)).x
            logits = lenses.logits(model, fitted.transport(h, layer))
            np.testing.assert_allclose(found.logits[row], jax.lax.top_k(logits, 8)[0], atol=1e-12)
        assert (found.ids[-1] == lenses.read(model, x).ids[-1]).all()
        direction = fitted.direction(model, 9, 2)
        h = jax.random.normal(jax.random.key(0), direction.shape)
        w = jaxlin.steering.token_direction(model, 9)
        np.testing.assert_allclose(direction @ h, w @ fitted.transport(h, 2), atol=1e-12)
        # It is a pytree.
        moved = jax.jit(lambda lens, h: lens.transport(h, 2))(fitted, h)
        np.testing.assert_allclose(moved, fitted.transport(h, 2), atol=1e-12)


@pytest.fixture(scope="module")
def fitted(checkpoint: Callable[[str], Path]) -> lenses.JacobianLens:
    model, _ = jaxlin.load(checkpoint("llama"))
    return lenses.fit(model, PROMPTS, skip_first=SKIP, progress=False)


SHARED = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
"""The instructions of a pair that is one pair twice, and so on: small, and without end to whoever follows it."""


class TestFiles:
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_there_and_back(self, suffix: str, dtype: str, fitted: lenses.JacobianLens, tmp_path: Path) -> None:
        lenses.save(fitted, tmp_path / f"a{suffix}", dtype=dtype)
        back = lenses.load(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(back.maps, fitted.maps.astype(dtype).astype(np.float32))
        for what in ("source_layers", "n_prompts", "estimator", "skip_first", "squared_deviations"):
            assert getattr(back, what) == getattr(fitted, what)
        assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]
        transposed = dataclasses.replace(
            fitted, maps=np.swapaxes(fitted.maps, 1, 2)
        )  # whose memory is in another order
        lenses.save(transposed, tmp_path / f"b{suffix}", dtype=dtype)
        np.testing.assert_array_equal(lenses.load(tmp_path / f"b{suffix}").maps, np.swapaxes(back.maps, 1, 2))

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_files_from_before_deviations(
        self, suffix: str, fitted: lenses.JacobianLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They say the mean of the squared norms, of which the squared deviations are what the mean's own leaves."""
        norms = np.sum(np.square(fitted.maps, dtype=np.float64), axis=(1, 2))
        squares = (norms + np.asarray(fitted.squared_deviations) / fitted.n_prompts).tolist()
        said = {"estimator": fitted.estimator, "skip_first_positions": SKIP, "mean_square": squares}
        monkeypatch.setattr("jaxlin.lens.jacobian_lens._metadata", lambda lens: said)
        lenses.save(fitted, tmp_path / f"a{suffix}", dtype="float32")
        np.testing.assert_allclose(lenses.load(tmp_path / f"a{suffix}").error, fitted.error, rtol=1e-4)
        for wrong in ([-1.0] * 3, [1.0] * 2, [np.nan] * 3, "a"):
            said["mean_square"] = wrong
            lenses.save(fitted, tmp_path / f"b{suffix}", dtype="float32")
            assert lenses.load(tmp_path / f"b{suffix}").squared_deviations is None
            (tmp_path / f"b{suffix}").unlink()

    def test_torch_reads_what_is_written(self, fitted: lenses.JacobianLens, tmp_path: Path) -> None:
        lenses.save(fitted, tmp_path / "a.pt")
        found = torch.load(tmp_path / "a.pt", weights_only=True)
        assert {key: found[key] for key in ("n_prompts", "source_layers", "d_model")} == {
            "n_prompts": 2,
            "source_layers": [0, 1, 2],
            "d_model": 64,
        }
        assert fitted.provenance is not None
        assert found["metadata"].pop("provenance") == fitted.provenance.to_dict()
        assert found["metadata"] == {
            "estimator": "jacobian_lens",
            "skip_first_positions": SKIP,
            "squared_deviations": list(fitted.squared_deviations or ()),
        }
        for layer in range(3):
            assert found["J"][layer].dtype == torch.float16
            np.testing.assert_array_equal(found["J"][layer].numpy(), fitted.maps[layer].astype(np.float16))

    def test_from_the_hub(self, fitted: lenses.JacobianLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        commit, repository = "0123456789" * 4, tmp_path / "models--org--lenses"  # as in huggingface_hub's cache
        folder = repository / "snapshots" / commit / "llama"
        folder.mkdir(parents=True)
        lenses.save(fitted, folder / "lens.pt", dtype="float32")
        (repository / "refs").mkdir()
        (repository / "refs" / "v1").write_text(commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        lens = lenses.JacobianLens.from_pretrained("org/lenses", "llama/lens.pt", revision="v1")
        np.testing.assert_array_equal(lens.maps, fitted.maps)
        assert (lens.source_layers, lens.n_prompts) == (fitted.source_layers, fitted.n_prompts)
        for file, revision in (("llama/none.pt", "v1"), ("llama/lens.pt", None)):
            with pytest.raises(CheckpointError, match="org/lenses: it is not in the cache"):
                lenses.JacobianLens.from_pretrained("org/lenses", file, revision=revision)

    def test_what_torch_writes_is_read(self, tmp_path: Path) -> None:
        matrices = {layer: torch.randn(3, 3).half() for layer in (4, 1)}
        torch.save({"J": matrices, "n_prompts": 7, "source_layers": [1, 4], "d_model": 3}, tmp_path / "a.pt")
        found = lenses.load(tmp_path / "a.pt")
        assert (found.source_layers, found.n_prompts, found.estimator) == ((1, 4), 7, lenses.ORDINARY)
        assert np.isnan(found.error).all()
        np.testing.assert_array_equal(found.at(4), matrices[4].float().numpy())
        sums = {"jacobian_sum": {0: 4 * torch.eye(2)}, "n_done": 2, "next_idx": 2, "skip_first": 16, "target_layer": 1}
        torch.save(sums, tmp_path / "b.pt")
        found = lenses.load(tmp_path / "b.pt")
        assert (found.n_prompts, found.skip_first, found.target_layer) == (2, 16, 1)
        np.testing.assert_array_equal(found.maps, 2 * np.eye(2)[None])

    def test_values_of_every_kind(self, tmp_path: Path) -> None:
        shared = torch.arange(12, dtype=torch.float32)
        whole: dict[Any, Any] = {
            "numbers": [0, 255, 256, 65536, -1, 2**31, -(2**40), 0.1, True, None],
            "texts": ("é", "", "a" * 300),
            3: {"rows": shared.reshape(3, 4)[1:], "bits": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(5)},
            "empty": [(), {}, [], torch.zeros(0, 3)],
        }
        torch.save(whole, tmp_path / "a.pt")
        found: dict[Any, Any] = read_pt(tmp_path / "a.pt")
        assert found["numbers"] == whole["numbers"]
        assert found["texts"] == whole["texts"]
        np.testing.assert_array_equal(found[3]["rows"], np.arange(4, 12).reshape(2, 4))
        assert found[3]["bits"].dtype == ml_dtypes.bfloat16
        assert found[3]["n"] == 5
        assert found["empty"][:3] == [(), {}, []]
        assert found["empty"][3].shape == (0, 3)
        with (tmp_path / "b.pt").open("wb") as file:
            write_pt(file, found)
        again = torch.load(tmp_path / "b.pt", weights_only=True)
        assert again["numbers"] == whole["numbers"]
        assert torch.equal(again[3]["rows"], whole[3]["rows"])

    def test_nothing_is_run(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        torch.save({"J": Hostile()}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="expected plain values and tensors; found a call"):
            lenses.load(tmp_path / "a.pt")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            ({"K": 1}, "expected matrices under J"),
            ({"J": {0: torch.eye(2)}}, "a number of prompts; found a NoneType"),
            ({"J": {"0": torch.eye(2)}, "n_prompts": 1}, "layers counted from 0"),
            ({"J": {0: torch.ones(2, 3)}, "n_prompts": 1}, "square matrices"),
            ({"J": {0: torch.eye(2), 1: torch.eye(3)}, "n_prompts": 1}, "square matrices"),
            ({"J": {0: 5}, "n_prompts": 1}, "square matrices"),
            ({"J": {0: torch.eye(2).bool()}, "n_prompts": 1}, "square matrices of floats"),
            ({"J": {0: torch.eye(2)}, "n_prompts": 10**400}, "a number of prompts"),
            ({"J": {0: torch.full((2, 2), torch.nan)}, "n_prompts": 1}, "finite matrices"),
            ({"J": {0: torch.ones(2, 3).T}, "n_prompts": 1}, "contiguous tensors"),
            ({"J": {0: torch.ones(2, dtype=torch.complex64)}, "n_prompts": 1}, "expected a storage of torch"),
            ([1], "expected a dictionary; found a list"),
        ],
    )
    def test_what_is_no_lens(self, found: Any, message: str, tmp_path: Path) -> None:
        torch.save(found, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=message):
            lenses.load(tmp_path / "a.pt")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"", "pickle exhausted"),
            (b"\x80\x02.", "expected a complete pickle"),
            (b"\x80\x02}(e.", "expected a complete pickle"),
            (b"\x80\x02h\x07.", "expected a complete pickle"),
            (b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.", "a call of"),
            (b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.", "found INST"),
            (b"\x80\x02K\x01K\x02\x92.", "found NEWOBJ_EX"),
            (b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.", "keys that are text or integers"),
            (b"\x80\x02" + b"(t" * 300_000 + b".", "a dictionary; found a tuple"),
            (b"\x80\x02}(X\x01\x00\x00\x00J" + SHARED + b"u.", "expected matrices under J"),
            (b"\x80\x02}(X\x01\x00\x00\x00J}K\x00" + SHARED + b"sX\x09\x00\x00\x00n_promptsK\x01u.", "square matrices"),
            (b"\x80\x02}(X\x01\x00\x00\x00J}K\x00K\x00sX\x09\x00\x00\x00n_prompts" + SHARED + b"u.", "found a tuple"),
            (b"\x80\x02" + SHARED + b")R.", "found a call of a tuple"),
            (b"\x80\x02}" + SHARED + b"K\x01s.", "keys that are text or integers"),
        ],
    )
    def test_pickles_that_are_refused(self, text: bytes, message: str, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", text)
        with pytest.raises(CheckpointError, match=message):
            lenses.load(tmp_path / "a.pt")

    @pytest.mark.parametrize("count", [1, 3])
    def test_files_that_are_damaged(self, count: int, fitted: lenses.JacobianLens, tmp_path: Path) -> None:
        """Whatever bytes change, it is refused by name or read as something that is a lens."""
        lenses.save(fitted, tmp_path / "whole.pt")
        whole, rng = (tmp_path / "whole.pt").read_bytes(), np.random.default_rng(0)
        # Where there are no matrices: the pickle and the zip archive's own records.
        held = [(whole.index(m.tobytes()), m.nbytes) for m in fitted.maps.astype(np.float16)]
        free = [i for i in range(len(whole)) if not any(start <= i < start + size for start, size in held)]
        refused = 0
        for _ in range(400):
            changed = bytearray(whole)
            for at in rng.choice(free, count):
                changed[at] = rng.integers(256)
            (tmp_path / "changed.pt").write_bytes(changed)
            try:
                lenses.load(tmp_path / "changed.pt")
            except CheckpointError:
                refused += 1
        assert refused > 100

    def test_matrices_of_one_storage(self, tmp_path: Path) -> None:
        """Parts of one are read; the same values again and again, which would be more than the file, are not."""
        parts, same = torch.randn(2, 3, 3), torch.randn(3, 3)
        torch.save({"J": dict(enumerate(parts)), "n_prompts": 1}, tmp_path / "parts.pt")
        np.testing.assert_array_equal(lenses.load(tmp_path / "parts.pt").maps, parts.numpy())
        torch.save({"J": dict.fromkeys(range(2), same), "n_prompts": 1}, tmp_path / "once.pt")
        with pytest.raises(CheckpointError, match="one matrix for several layers"):
            lenses.load(tmp_path / "once.pt")
        torch.save({"J": {i: same.view(3, 3) for i in range(2)}, "n_prompts": 1}, tmp_path / "same.pt")
        with pytest.raises(CheckpointError, match="expected 36 bytes; found 36, for 18 values"):
            lenses.load(tmp_path / "same.pt")

    def test_what_torch_keeps_beside_tensors(self, tmp_path: Path) -> None:
        more = {"size": torch.Size([2]), "mask": torch.ones(2, dtype=torch.bool), "bytes": torch.ones(2).byte()}
        saved = {"J": {0: torch.nn.Parameter(torch.eye(2))}, "n_prompts": 1, "metadata": more}
        torch.save(saved, tmp_path / "a.pt")
        np.testing.assert_array_equal(lenses.load(tmp_path / "a.pt").maps, np.eye(2)[None])
        torch.save({"J": {0: torch._neg_view(torch.eye(2))}, "n_prompts": 1}, tmp_path / "b.pt")
        with pytest.raises(CheckpointError, match=r"a call of torch._utils._rebuild_tensor_v2"):
            lenses.load(tmp_path / "b.pt")

    def test_archives_that_are_refused(self, fitted: lenses.JacobianLens, tmp_path: Path) -> None:
        lenses.save(fitted, tmp_path / "whole.pt")
        whole = (tmp_path / "whole.pt").read_bytes()
        (tmp_path / "cut.pt").write_bytes(whole[:-100])
        with pytest.raises(CheckpointError, match="expected a zip archive"):
            lenses.load(tmp_path / "cut.pt")
        (tmp_path / "flipped.pt").write_bytes(
            whole.replace(fitted.maps[0].astype(np.float16).tobytes()[:64], b"\0" * 64)
        )
        with pytest.raises(CheckpointError, match="CRC"):
            lenses.load(tmp_path / "flipped.pt")
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}

        def written(name: str, kind: int, change: dict[str, bytes | None]) -> Path:
            with zipfile.ZipFile(tmp_path / name, "w", kind) as archive:
                for part, values in {**parts, **change}.items():
                    if values is not None:
                        archive.writestr(part, values)
            return tmp_path / name

        changes: list[tuple[dict[str, bytes | None], str]] = [
            ({"archive/byteorder": b"big"}, "little-endian"),
            ({"archive/data/1": None}, "expected an entry archive/data/1"),
            ({"archive/data/1": b"\0"}, "expected 8192 bytes; found 1"),
            ({"archive/data.pkl": None}, "expected one data.pkl"),
            ({"other/data.pkl": b""}, "expected one data.pkl"),
        ]
        for change, message in changes:
            with pytest.raises(CheckpointError, match=message):
                lenses.load(written("changed.pt", zipfile.ZIP_STORED, change))
        with pytest.raises(CheckpointError, match="uncompressed"):
            lenses.load(written("packed.pt", zipfile.ZIP_DEFLATED, {}))
        with pytest.raises(CheckpointError, match="no such file"):
            lenses.load(tmp_path / "none.pt")
        with pytest.raises(CheckpointError, match=r"ends in .safetensors or .pt"):
            lenses.load(tmp_path / "none.npz")
        safetensors.numpy.save_file({"J": np.eye(2)[None]}, tmp_path / "plain.safetensors")
        with pytest.raises(CheckpointError, match=r"as jaxlin.lens.save writes"):
            lenses.load(tmp_path / "plain.safetensors")
        said = {"jaxlin_lens": '{"layers": [0, 0], "prompts": 1}'}
        safetensors.numpy.save_file({"J": np.stack([np.eye(2)] * 2)}, tmp_path / "twice.safetensors", said)
        with pytest.raises(CheckpointError, match=r"as jaxlin.lens.save writes"):
            lenses.load(tmp_path / "twice.safetensors")
        os.mkfifo(tmp_path / "pipe.pt")
        with pytest.raises(CheckpointError, match="another kind of thing"):
            lenses.load(tmp_path / "pipe.pt")
        with pytest.raises(CheckpointError, match=r"JacobianLens.from_pretrained\(repo, filename\)"):
            lenses.load("neuronpedia/jacobian-lens")
        with pytest.raises(jaxlin.JaxlinError, match="expected a path"):
            lenses.load("a\0.pt")

    def test_where_it_cannot_be_written(self, fitted: lenses.JacobianLens, tmp_path: Path) -> None:
        (tmp_path / "there.pt").touch()
        large = jax.tree.map(lambda maps: 1e6 * maps, fitted)
        for lens, path, message in (
            (fitted, tmp_path / "there.pt", "is there already"),
            (fitted, tmp_path / "a.npy", "ends in .safetensors or .pt"),
            (fitted, tmp_path / "none" / "a.pt", "expected a directory"),
            (large, tmp_path / "a.pt", "entries in float16's range"),
            (jax.tree.map(lambda maps: np.nan * maps, fitted), tmp_path / "a.pt", "finite entries"),
        ):
            with pytest.raises(jaxlin.JaxlinError, match=message):
                lenses.save(lens, path, dtype="float16")
        with pytest.raises(jaxlin.JaxlinError, match="dtype: expected one of float16"):
            lenses.save(fitted, tmp_path / "a.pt", dtype="int8")
        lenses.save(large, tmp_path / "a.pt")
        assert torch.load(tmp_path / "a.pt", weights_only=True)["J"][0].dtype == torch.float32


class TestOngoing:
    def test_an_interrupted_fit_goes_on(
        self, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, _ = jaxlin.load(checkpoint("llama"))
        prompts = [[*PROMPTS[0][:-1], i] for i in range(4)]
        out = tmp_path / "a.safetensors"
        add, calls = RunningMean.add, []

        def interrupted(self: Any, ids: Any, found: Any) -> None:
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(ids)
            add(self, ids, found)

        with monkeypatch.context() as patch:
            patch.setattr(RunningMean, "add", interrupted)
            with pytest.raises(KeyboardInterrupt):
                lenses.fit(model, prompts, skip_first=SKIP, out=out, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors.partial"]
        with pytest.raises(jaxlin.JaxlinError, match="was begun with another model"):
            lenses.fit(model, prompts[1:], skip_first=SKIP, out=out, progress=False)
        with pytest.raises(jaxlin.JaxlinError, match="was begun with another model"):
            lenses.fit(model, prompts, skip_first=SKIP, frozen=True, out=out, progress=False)
        counted = []
        monkeypatch.setattr(RunningMean, "add", lambda *a: (counted.append(1), add(*a)))
        going = lenses.fit(model, prompts, skip_first=SKIP, out=out, progress=False)
        assert len(counted) == 2
        whole = lenses.fit(model, prompts, skip_first=SKIP, progress=False)
        np.testing.assert_array_equal(going.maps, whole.maps)
        assert going.squared_deviations == whole.squared_deviations
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
        with pytest.raises(jaxlin.JaxlinError, match="is there already"):
            lenses.fit(model, prompts, skip_first=SKIP, out=out, progress=False)
        sums = {"J_sum": np.zeros((3, 64, 64), np.float32), "square_sum": np.zeros(3)}
        safetensors.numpy.save_file(sums, tmp_path / "c.pt.partial", {"jaxlin_fit": '{"prompts": 0}'})
        with pytest.raises(jaxlin.JaxlinError, match="by an earlier jaxlin"):
            lenses.fit(model, prompts, skip_first=SKIP, out=tmp_path / "c.pt", progress=False)
        (tmp_path / "b.pt.partial").write_bytes(b"{")
        with pytest.raises(jaxlin.JaxlinError, match="is damaged"):
            lenses.fit(model, prompts, skip_first=SKIP, out=tmp_path / "b.pt", progress=False)

    @pytest.mark.parametrize("step", ["_updated_mean", "_extended_hash"])
    def test_an_interruption_between_two_steps(
        self, step: str, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A prompt is in the sums, their squares and the count, or in none."""
        model, _ = jaxlin.load(checkpoint("llama"))
        prompts, out = [[*PROMPTS[0][:-1], i] for i in range(4)], tmp_path / "a.pt"
        real, calls = getattr(running_mean, step), []

        def interrupted(*arguments: Any) -> Any:
            found = real(*arguments)
            calls.append(found)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return found

        with monkeypatch.context() as patch:
            patch.setattr(running_mean, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                lenses.fit(model, prompts, skip_first=SKIP, out=out, progress=False)
        going = lenses.fit(model, prompts, skip_first=SKIP, out=out, progress=False)
        whole = lenses.fit(model, prompts, skip_first=SKIP, progress=False)
        np.testing.assert_array_equal(going.maps, whole.maps)
        assert going.squared_deviations == whole.squared_deviations

    def test_another_model_does_not_go_on(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        """Not even one that differs in tokens that the first prompt has not."""
        model, _ = jaxlin.load(checkpoint("llama"))
        used, other = np.unique(PROMPTS[0]), jax.tree.map(lambda a: a, model)
        assert 50 not in used
        other.embed_tokens.weight[...] = model.embed_tokens.weight[...].at[50].multiply(3)
        prompts, out = [PROMPTS[0], [50] * 8, [10**6] * 8], tmp_path / "a.pt"
        with pytest.raises(PromptError, match="found 1000000"):  # before anything is computed or written
            lenses.fit(model, prompts, skip_first=SKIP, out=out, progress=False)
        assert list(tmp_path.iterdir()) == []
        mean = RunningMean(
            out, (3, 64), jnp.float32, lenses.fitting._identity(model, PROMPTS[0], "jacobian_lens", (0, 1, 2), SKIP)
        )
        mean.resume([])
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt.partial"]
        with pytest.raises(jaxlin.JaxlinError, match="another model"):
            lenses.fit(other, prompts[:2], skip_first=SKIP, out=out, progress=False)
        assert lenses.fit(model, prompts[:2], skip_first=SKIP, out=out, progress=False).n_prompts == 2

    def test_it_says_at_once_that_it_cannot_be_written(self, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint("llama"))
        with pytest.raises(jaxlin.JaxlinError, match=r"a.pt cannot be written"):
            lenses.fit(model, PROMPTS, skip_first=SKIP, out="/proc/a.pt", progress=False)

    def test_errors_of_bfloat16_are_of_float32(self, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint("llama"), dtype="bfloat16")
        same = lenses.fit(model, [PROMPTS[0]] * 3, skip_first=SKIP, progress=False)
        np.testing.assert_array_equal(same.error, 0)

    def test_it_stops_when_it_is_settled(self, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint("llama"))
        prompts = [[*PROMPTS[0][:-2], i, 1] for i in range(16)]
        assert lenses.fit(model, prompts, skip_first=SKIP, tolerance=1.0, progress=False).n_prompts == 10
        assert lenses.fit(model, prompts, skip_first=SKIP, tolerance=0.0, progress=False).n_prompts == 16
        # Of equal maps the error is zero, however their sums round.
        equal = lenses.fit(model, prompts[:1] * 16, skip_first=SKIP, tolerance=0.0, progress=False)
        assert (equal.n_prompts, equal.error.tolist()) == (10, [0.0] * 3)

    def test_parts_of_a_corpus_are_put_together(self, checkpoint: Callable[[str], Path]) -> None:
        model, _ = jaxlin.load(checkpoint("llama"))
        prompts = [[*PROMPTS[0][:-2], i, i] for i in range(5)]
        whole = lenses.fit(model, prompts, skip_first=SKIP, progress=False)
        parts = [lenses.fit(model, part, skip_first=SKIP, progress=False) for part in (prompts[:2], prompts[2:])]
        merged = lenses.merge(parts)
        assert merged.n_prompts == 5
        np.testing.assert_allclose(merged.maps, whole.maps, atol=1e-6)
        np.testing.assert_allclose(merged.error, whole.error, rtol=1e-4)
        same = lenses.fit(model, prompts[:1] * 3, skip_first=SKIP, progress=False)
        np.testing.assert_array_equal(lenses.merge([same, same]).error, 0)
        held = lenses.fit(model, prompts, frozen=True, skip_first=SKIP, progress=False)
        for others, message in (([], "one lens or more"), ([whole, held], "of one estimator")):
            with pytest.raises(jaxlin.JaxlinError, match=message):
                lenses.merge(others)


def test_refused(checkpoint: Callable[[str], Path], fitted: lenses.JacobianLens) -> None:
    model, _ = jaxlin.load(checkpoint("llama"))
    x = model.embed(tiny.IDS)
    for options, message in (
        ({"prompts": "text"}, "prompts: expected a list.*found 'text'"),
        ({"prompts": tiny.IDS}, "each a list of token ids"),
        ({"prompts": [[1, 2]]}, "prompts of 4 tokens or more; found none among 1"),
        ({"source_layers": (3,)}, r"some of 0..2; found \[3\]"),
        ({"source_layers": ()}, r"some of 0..2; found \[\]"),
        ({"rule": "up"}, "give frozen=True"),
        ({"frozen": True, "rule": "down"}, "Rule: expected one of"),
        ({"skip_first": -1}, "skip_first: expected an integer of at least 0"),
        ({"max_seq_len": 3}, "max_seq_len: expected an integer of at least 4"),
        ({"prompts": [[0.5] * 9]}, "expected a list of one token id or more; found shape .*float64"),
        ({"tolerance": -1.0}, "tolerance: expected a number of at least 0"),
        ({"dim_batch": 0}, "at least 1 row"),
        ({"out": "a.npy"}, "ends in .safetensors or .pt"),
    ):
        with pytest.raises(jaxlin.JaxlinError, match=message):
            lenses.fit(model, **{"prompts": PROMPTS, "skip_first": SKIP, "progress": False, **options})
    with pytest.raises(PromptError, match="expected token ids in 0"):
        lenses.fit(model, [[*tiny.IDS, 10**6]], skip_first=SKIP, progress=False)
    other, _ = jaxlin.load(checkpoint("llama, wide"))
    for call, message in (
        (lambda: lenses.read(model, x, k=0), r"number of tokens in 1\.\."),
        (lambda: lenses.read(model, x, tokens=(10**6,)), r"token ids in 0\.\."),
        (lambda: lenses.read(model, x, positions=(99,)), "Position: expected one in"),
        (lambda: lenses.read(other, other.embed(tiny.IDS), fitted), "It belongs to another model"),
        (lambda: check_lens(model, np.eye(4)), "Without any, the logit lens is read"),
        (lambda: fitted.at(3), r"a layer of 0\.\.2; found 3"),
        (lambda: fitted.transport(np.ones(3), 0), r"shape \(..., 64\)"),
        (lambda: fitted.direction(other, 0, 0), "It belongs to another model"),
    ):
        with pytest.raises(jaxlin.JaxlinError, match=message):
            call()
    astray = dataclasses.replace(fitted, target_layer=2)
    with pytest.raises(jaxlin.JaxlinError, match=r"leads to the last layer, 3, .* leads to layer 2"):
        lenses.read(model, x, astray)
    with pytest.raises(PromptError, match="expected floats"):
        model.check_embeddings(jnp.ones((3, 64), int))
    one = lenses.read(model, x, tokens=5, positions=3)
    assert (one.positions, one.ranks.shape) == ((3,), (4, 1, 1))
    with pytest.raises(PromptError, match=r"shape \(\.\.\., 64\); found \(3,\)"):
        lenses.logits(model, jnp.ones(3))
    assert (
        repr(fitted)
        == "JacobianLens(maps of shape (3, 64, 64), source_layers=0..2, n_prompts=2, estimator='jacobian_lens')"
    )
    assert repr(lenses.read(model, x)) == "LensReading(layers=0..3, 20 positions, 8 tokens at each, ranks of 0)"


@pytest.mark.parametrize("name", ["llama, biases", "gemma3_text", "phi", "mistral, window", "olmo2"])
def test_the_exact_lens(name: str, checkpoint: Callable[[str], Path], x64: None) -> None:
    """Its parts are those of the map of each layer, and add up to the output in transformers."""
    folder, position = checkpoint(name), 5
    model, _ = jaxlin.load(folder, dtype="float64")
    x = model.embed(tiny.IDS)
    found = lenses.exact(model, x, position=position, rule="half")
    state = oracle.reference(folder, tiny.IDS, torch.float64).states[position]
    np.testing.assert_allclose(found.parts.sum(1) + found.bias, np.tile(state, (len(found.bias), 1)), atol=1e-11)
    assert found.defect < 1e-12
    for layer in range(model.config.num_hidden_layers):
        lmap = jaxlin.local_map(model, x, source=("resid_pre", layer), position=position, rule="half")
        np.testing.assert_allclose(found.bias[layer], lmap.bias, atol=1e-11)
        parts = jnp.einsum("dte,te->td", lmap.jacobian(), lmap.x)
        np.testing.assert_allclose(found.parts[layer], parts, atol=1e-11)
    words = found.words(model, k=3)
    head = model.embed_tokens.weight if model.unembedding.weight is None else model.unembedding.weight
    logits = jnp.einsum("vd,ltd->ltv", head[...].astype(x.dtype), found.parts)
    np.testing.assert_array_equal(words.positive.ids, jax.lax.top_k(logits, 3)[1])
    of_tokens = stream_contributions(model, x, found.parts[2, 3], position=position, rule="half")
    np.testing.assert_allclose(found.parts @ found.parts[2, 3], of_tokens.tokens, atol=1e-11)
