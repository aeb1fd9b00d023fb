"""The benchmark suite: a part of each, and its bars. Ratios are tested, and no absolute time is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
import torch
import transformers
from kinds import PROVEN
from torch.utils.flop_counter import FlopCounterMode

import jaxlin
from benchmarks import (
    attribution,
    batch,
    conservation,
    delta,
    dense,
    experts,
    floor,
    gpu,
    large,
    lens,
    long,
    packed,
    parity,
    peer,
    precision,
    report,
    scaling,
    shapes,
    timing,
)
from benchmarks.__main__ import GROUPS, main
from benchmarks.bars import BARS
from benchmarks.circuits import cost
from benchmarks.results import Ratio, Row, commit, document
from benchmarks.setting import Clock, Setting
from jaxlin.common.errors import JaxlinError
from jaxlin.loading.plan import memory_plan
from jaxlin.loading.shapes import abstract_model
from jaxlin.nn.precision import MATMUL_PRECISIONS, PRECISIONS
from jaxlin.quantized import FourBit

SLACK = 0.25
"""How far a ratio may be from its bar on a machine that does other things too."""


MEASURE = """
import json, sys
from benchmarks import dense
from benchmarks.results import document
from benchmarks.setting import Setting
with Setting(sys.argv[1], runs=2) as setting:
    found = list(dense.at_length(setting, 8, others=()))
    print(json.dumps(document(found, command="", checkpoint="", dtype="", seeds={}, runs=2)))
"""


def measured(checkpoint: Path) -> dict[str, Any]:
    """The dense map of 8 tokens, in a process that compiles as users' do."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-c", MEASURE, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=parity.ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def near_bar(result: dict[str, Any], key: str) -> bool:
    """Whether the ratio `key` meets its bar, or misses it by no more than `SLACK`."""
    (value,) = [ratio["value"] for ratio in result["ratios"] if ratio["key"] == key]
    bar = BARS[key]
    assert bar.limit is not None
    return value >= bar.limit * (1 - SLACK) if bar.at_least else value <= bar.limit * (1 + SLACK)


def test_dense_map_reaches_its_floor(smollm2_gguf: Path) -> None:
    result = measured(smollm2_gguf)
    assert near_bar(result, "dense, of floor"), result
    assert near_bar(result, "dense, depth"), result


def test_dense_map_against_its_peers() -> None:
    """All give the same map. In a model this small the fixed costs of a call decide: its ratios meet no bar."""
    with Setting(runs=1, side=256) as setting:
        result = document(list(dense.at_length(setting, 8)), command="", checkpoint="", dtype="", seeds={}, runs=1)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [dense.OURS, dense.RECORDED, *dense.OTHERS]
    assert [row["ours"] for row in rows.values()] == [True, True, False, False, False, False]
    assert all(len(row["seconds"]) == 1 and row["floor"] is not None for row in rows.values())
    assert all(rows[name]["figures"]["difference"] <= 1e-5 for name in dense.OTHERS)


def test_a_fit_against_its_peer() -> None:
    """Both give the same lenses, of the ordinary derivative and of the local linear map."""
    with Setting(runs=1, side=256) as setting:
        result = document(
            list(lens.at_length(setting, 12, skip=4)), command="", checkpoint="", dtype="", seeds={}, runs=1
        )
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() == {*lens.OURS.values(), *lens.TORCH.values()}
    assert all(rows[name]["figures"]["difference"] <= 1e-5 for name in lens.TORCH.values())
    assert [ratio["size"]["of"] for ratio in result["ratios"]] == ["the ordinary derivative", "the local linear map"]


def test_maps_that_differ_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "jacrev", lambda model, x: 1.01 * peer.vectorized(model, x))
    with Setting(runs=1, side=64) as setting, pytest.raises(JaxlinError, match=r"within 0\.0001 of ours; found"):
        list(dense.at_length(setting, 4, others=[dense.FUNCTIONAL]))


def test_products_with_packed_weights() -> None:
    """Each format gives what its unpacked values give, and has a row with its bits and its time against float32."""
    stacks, x = packed.stacks(256), jax.random.normal(jax.random.key(0), (256, 2))
    for weights in stacks.values():
        unpacked = jax.jit(lambda weights: weights[...].astype(jnp.float32))(weights)
        expected = np.asarray(unpacked, np.float64).sum(0) @ np.asarray(x)
        result = jax.jit(packed.products)(weights, x)
        np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())
    with Clock(runs=1, side=64) as clock:
        result = document(list(packed.measure(clock, 256)), command="", checkpoint="", dtype="", seeds={}, runs=1)
    assert [row["name"] for row in result["rows"]] == list(stacks)
    assert {row["name"]: row["figures"]["bits a weight"] for row in result["rows"]}["Q4_K"] == pytest.approx(
        4.5, rel=1e-3
    )
    assert [ratio["size"]["format"] for ratio in result["ratios"]] == list(stacks)[1:]


def test_the_products_of_the_floor() -> None:
    """Against PyTorch's count of a forward and a backward pass, which does not cut the top block nor the mask."""
    with Setting(runs=1, side=64) as setting:
        x = torch.tensor(np.asarray(setting.x(8)))
        with FlopCounterMode(display=False) as counter:
            peer.backward(setting.peer, x, torch.ones(x.shape[1]))
        config = setting.model.config
    counted = floor.forward_products(config, 8) + floor.row_products(config, 1, 8)
    assert 0.85 * counter.get_total_flops() <= counted <= counter.get_total_flops()
    assert floor.folded_products(config, 192, 8) < floor.row_products(config, 192, 8)
    assert floor.row_products(config, 1, 8, layers=0) == floor.folded_products(config, 1, 8, layers=0) == 0


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of two groups on the small model."""
    path = tmp_path_factory.mktemp("results") / "here.json"
    assert main(["--quick", "--runs", "1", "--only", "attribution", "load", "--json", str(path)]) == 0
    return path


def test_json(written: Path) -> None:
    result = json.loads(written.read_text())
    assert result["command"] == "python -m benchmarks --quick --runs 1 --only attribution load --json here.json"
    assert result["versions"]["jax"] == jax.__version__
    assert result["device"]["platform"] == "cpu"
    assert {"python", "checkpoint", "dtype", "seeds", "runs", "quick", "notes"} <= result.keys()
    for row in result["rows"]:
        assert row["median"] == pytest.approx(np.median(row["seconds"]))
        assert row["group"] in ("attribution", "load")
        if row["group"] == "attribution":
            assert len(row["seconds"]) == attribution.RUNS
            assert row["fraction"] == pytest.approx(row["floor"]["seconds"] / row["median"])
        else:
            assert row["resident"] > 0
            assert row["figures"]["weights"] > 2 * 10**6
    assert {row["name"] for row in result["rows"] if not row["ours"]} == {"torch backward pass", "transformers"}
    bars = {ratio["key"]: ratio["limit"] for ratio in result["ratios"]}
    assert bars["attribution, over forward"] == 3
    assert bars["attribution, over PyTorch"] is None


def test_the_commit_is_said(tmp_path: Path) -> None:
    here, changed = tmp_path / "here", tmp_path / "here" / "changed"
    changed.mkdir(parents=True)
    (here / "file").write_text("one")

    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(["git", *who, *words], cwd=here, capture_output=True, text=True, check=True).stdout

    git("init", "--quiet")
    git("add", "file")
    git("commit", "--quiet", "--message", "One")
    assert commit(here) == git("rev-parse", "HEAD")[:9]
    (here / "file").write_text("two")
    assert commit(changed) == git("rev-parse", "HEAD")[:9] + "+"
    assert commit(tmp_path) is None


def test_an_interrupted_run_keeps_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(setting: Setting) -> Iterator[Row]:
        yield row("ours", 8, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setitem(GROUPS, "dense", interrupted)
    out = tmp_path / "results" / "here.json"
    assert main(["--only", "dense", "--json", str(out)]) == 130
    assert not out.exists()
    partial = out.with_name("here.json.partial")
    assert capsys.readouterr().err.endswith(f"Interrupted; the findings so far are in {partial}.\n")
    assert [each["name"] for each in json.loads(partial.read_text())["rows"]] == ["ours"]


def test_a_batch_is_compared_in_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways run in turn, the faster one's share is the ratio, and contributions that differ are no result."""
    ways = []

    def ran(way: str, checkpoint: str | None, prompts: list[list[int]], target: int) -> Any:
        assert [len(prompts[0]), len(prompts[-1]), len({len(each) for each in prompts})] == [5, 40, 12]
        ways.append(way)
        return {batch.ONE: 1.0, batch.EACH: 4.0}[way], {"tokens0": np.array([1.0, -4.0 - off * (way == batch.ONE)])}

    monkeypatch.setattr(batch, "in_a_fresh_process", ran)
    with Setting(runs=2, side=64) as setting:
        off = 2e-5
        *rows, over_each = batch.measure(setting)
        assert isinstance(over_each, Ratio)
        assert (over_each.value, over_each.met) == (0.25, True)
        assert [row.figures["difference"] for row in rows if isinstance(row, Row)] == pytest.approx([5e-6] * 2)
        assert ways == [batch.ONE, batch.EACH, batch.EACH, batch.ONE]
        off = 8e-5
        with pytest.raises(JaxlinError, match=r"within 1e-05; found 2e-05"):
            list(batch.measure(setting))


def test_the_program_of_a_batch() -> None:
    model, _ = jaxlin.load()
    took, parts = batch.in_a_fresh_process(batch.ONE, None, [[3, 1, 4]], 5)
    alone = jaxlin.attribute(model, model.embed([3, 1, 4]), 5)
    assert took > 0
    np.testing.assert_allclose(parts["tokens0"], np.append(alone.tokens, alone.bias), atol=1e-5)
    np.testing.assert_allclose(parts["heads0"], alone.heads, atol=1e-5)


def test_report(written: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert report.main(["--results", str(written.parent), "--out", str(page)]) == 0
    text = page.read_text()
    assert "| attribute | 8 tokens |" in text
    assert "| *torch backward pass* | 8 tokens |" in text
    assert "cost.svg" not in text  # one length is no curve
    assert report.main(["--results", str(tmp_path / "none"), "--out", str(page)]) == 1


def row(name: str, tokens: int, took: float, ours: bool = True) -> Row:
    return Row("dense", name, {"tokens": tokens}, [took], ours)


def test_report_says_where_we_lose(tmp_path: Path) -> None:
    rows = [row("ours", 8, 1.0), row("theirs", 8, 2.0, False), row("ours", 32, 5.0), row("theirs", 32, 4.0, False)]
    ratios = [Ratio("layers, over one", {"tokens": 8}, 1.7), Ratio("layers, over each", {"tokens": 8}, 0.5)]
    result = document([*rows, *ratios, "a note"], command="c", checkpoint="m", dtype="float32", seeds={}, runs=1)
    for ratio in result["ratios"]:  # the bars of an older file do not count
        ratio |= {"limit": 0.1, "says": "an old name", "met": not ratio["met"]}
    (tmp_path / "cpu.json").write_text(json.dumps({**result, "commit": "0123456+"}))
    assert report.main(["--results", str(tmp_path), "--out", str(tmp_path / "B.md")]) == 0
    text = (tmp_path / "B.md").read_text()
    lost = text.split("## Where we lose")[1].split("##")[0].strip().splitlines()
    assert lost == [
        "- cpu: all layers' maps: one sweep / one dense map, 8 tokens: 1.7, where the bar is ≤ 1.5.",
        "- cpu: theirs is faster than our ours, 32 tokens: 5 s against 4 s.",
    ]
    assert "![seconds against tokens](cost.svg)" in text
    assert (tmp_path / "cost.svg").stat().st_size > 1000
    assert "- a note" in text
    assert "`c`, 1 rounds, commit 0123456+, python" in text


def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu"]) == 0
    assert capsys.readouterr().out == "No GPU is here: the benchmarks of large shapes are skipped.\n"


def test_gpu_tasks_at_a_small_shape() -> None:
    tokens = {"dense map": 4, "precision": 4, "attribution": 12, "spectrum": 12}
    with Clock(runs=1, side=64) as clock:
        findings = list(gpu.each(clock, {"small": shapes.tiny(dtype="bfloat16")}, tokens))
    rows = {row.name: row for row in findings if isinstance(row, Row)}
    assert list(rows) == ["dense map", ", ".join(PRECISIONS), "attribution", "forward pass", "krylov"]
    assert 0 < rows["dense map"].figures["residual"] <= 3e-6
    assert rows["attribution"].figures["component defect"] <= 3e-6
    ratios = [ratio.key for ratio in findings if isinstance(ratio, Ratio)]
    assert ratios == ["gpu, of floor", "precision, residual", "attribution, over forward"]


def test_gpu_tasks_of_two_shapes_in_four_bits() -> None:
    config = {**shapes.tiny(128), "quantization_config": shapes.NF4}
    with Clock(runs=1, side=64) as clock:
        findings = list(gpu.each(clock, {"one": config, "two": config}, {"rows": 4, "precision": 4}))
    rows = [(row.name, row.size["model"]) for row in findings if isinstance(row, Row)]
    assert rows == [("a block of rows", "one"), (", ".join(PRECISIONS), "one"), ("a block of rows", "two")]
    assert all(row.fraction for row in findings if isinstance(row, Row))
    assert "all rows at 4 tokens are 1 such blocks" in " ".join(each for each in findings if isinstance(each, str))


def test_precisions_that_a_device_tells_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        MATMUL_PRECISIONS, "cpu", {"high": "BF16_BF16_F32_X3", "fast": "default", "BF16_BF16_F32_X3": "high"}
    )
    with Setting(runs=2, side=64) as setting:
        findings = list(precision.measure_map(setting, setting.model, setting.x(4), {"tokens": 4}))
    rows = [each for each in findings if isinstance(each, Row)]
    assert [row.name for row in rows] == ["highest, BF16_BF16_F32_X6", "high", "fast", "BF16_BF16_F32_X3"]
    assert all(0 < row.figures["residual"] <= 3e-6 and len(row.seconds) == 2 for row in rows)
    assert findings[-1] == Ratio("precision, residual", {"tokens": 4}, rows[0].figures["residual"])


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Llama-3.2-3B", 3.2), ("Qwen3-8B", 8.2), ("Gemma-3-12B", 11.8), ("Qwen3.5-4B", 4.2), ("Qwen3-30B-A3B", 30.5)],
)
@pytest.mark.usefixtures("uncompiled_plans")
def test_large_shapes(name: str, billions: float) -> None:
    """They are those models: as many parameters, and a memory plan."""
    shape = {**shapes.LARGE, **shapes.UNLIKE}[name]
    period = shape.get("full_attention_interval", 1)
    one, two = (memory_plan({**shape, "num_hidden_layers": n}, tokens=2).parameters for n in (period, 2 * period))
    periods = shape["num_hidden_layers"] // period
    assert one + (periods - 1) * (two - one) == pytest.approx(billions * 1e9, rel=0.02)


def test_the_products_of_a_hybrid_and_a_mixture(checkpoint: Callable[[str], Path]) -> None:
    """Against PyTorch's count of a forward pass, which has routers, convolutions and inverses too."""
    settings = {**shapes.QWEN_35_4B, "num_hidden_layers": 4, "vocab_size": 256}
    with torch.device("meta"):
        hybrid: Any = transformers.Qwen3_5TextModel(transformers.Qwen3_5TextConfig(**settings))
        ids = torch.zeros(1, 64, dtype=torch.long)
    mixture = oracle.load(checkpoint("qwen3_moe"), torch.float32).model
    of_mixture = jaxlin.load(checkpoint("qwen3_moe"))[0].config
    of_hybrid = abstract_model(settings, "settings", "float32", "gate").config
    for reference, config, tokens in (
        (hybrid, of_hybrid, ids),
        (mixture, of_mixture, torch.tensor([tiny.IDS[:8]])),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            reference(input_ids=tokens)
        counted = floor.forward_products(config, tokens.shape[1])
        assert 0.85 * counter.get_total_flops() <= counted <= counter.get_total_flops()
        # Rows leave out the gate projection, and what a pattern and a gate are computed from.
        assert 0.3 * counted < floor.row_products(config, 1, tokens.shape[1]) < 0.8 * counted


def test_gpu_tasks_of_a_hybrid_and_a_mixture() -> None:
    sizes = {"num_hidden_layers": 4, "hidden_size": 64, "vocab_size": 128, "num_attention_heads": 2, "head_dim": 32}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 96}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    hybrid = {**shapes.QWEN_35_4B, **sizes, **heads, "linear_value_head_dim": 8}
    mixture = {**shapes.QWEN_30B_A3B, **sizes, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    with Clock(runs=1, side=64) as clock:
        findings = list(gpu.each(clock, {"hybrid": hybrid, "mixture": mixture}, {"dense map": 4, "attribution": 12}))
    rows = [row for row in findings if isinstance(row, Row)]
    assert [row.name for row in rows] == ["dense map", "attribution", "forward pass"] * 2
    assert all(row.fraction for row in rows)
    assert all(0 < row.figures["residual"] <= 3e-6 for row in rows if row.name == "dense map")
    assert all(row.figures["defect"] <= 1e-5 for row in rows if row.name == "attribution")


def test_random_model_is_as_stored() -> None:
    model = shapes.random_model(shapes.tiny(dtype="bfloat16"))
    drawn = np.asarray(model.layers.mlp.up_proj.weight[...], np.float32)
    assert drawn.std() == pytest.approx(64**-0.5, rel=0.05)
    assert abs(drawn.mean()) < 0.01
    assert len(np.unique(drawn[0])) > 100
    assert not np.array_equal(drawn[0], drawn[1])
    assert (np.asarray(model.norm.weight[...], np.float32) == 1).all()


def test_a_few_layers_say_what_all_take() -> None:
    """Of memory at least: times of so small a model are those of its dispatch."""
    config = {**large.CHECKED, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 16}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    with Clock(runs=1, side=64) as clock:
        checked, extrapolated = list(large.check(clock, config)), list(large.extrapolate(clock, config, "small"))
    ratios = {ratio.key: ratio.value for ratio in checked if isinstance(ratio, Ratio)}
    assert ratios.keys() == {"large, rows", "large, recording", "large, memory"}
    assert ratios["large, memory"] < 0.02
    assert [each.size["model"] for each in extrapolated if isinstance(each, Row)] == ["small", "small"]
    assert str(extrapolated[-1]).startswith("large: small, all 16 layers on this device")


def test_a_long_prompt() -> None:
    with Setting(runs=1, side=64) as setting:
        findings = list(long.at_length(setting, 24))
        assert list(long.measure(setting)) == ["long: 4096 tokens are left out of a quick run"]
    rows = [each for each in findings if isinstance(each, Row)]
    assert [row.name for row in rows] == ["attribution", "top 4 singular values"]
    assert rows[0].figures["defect"] <= 1e-5
    assert rows[1].figures["bound"] <= long.TOL
    assert all(0 < each.value < 6 for each in findings if isinstance(each, Ratio))


def test_what_a_circuit_costs() -> None:
    with Setting(runs=1, side=64) as setting:
        findings = [*cost.at_length(setting, 6), *cost.long(setting, 24)]
    rows = [each for each in findings if isinstance(each, Row)]
    assert [row.name for row in rows] == [cost.OURS, cost.FORWARD, cost.LAST, cost.OURS]
    assert all(row.figures["defect"] <= 1e-5 for row in rows if row.name == cost.OURS)
    ratios = {each.key: each.value for each in findings if isinstance(each, Ratio)}
    assert ratios["circuits, over forward"] == pytest.approx(rows[0].median / rows[1].median)
    assert 0 < ratios["circuits, memory"] < ratios["circuits, long"] < 6


def test_patterns_of_the_delta_rule() -> None:
    with Clock(runs=1, side=64) as clock:
        findings = [*delta.patterns(clock, 24, 2), *delta.long(clock, 70, 2)]
    rows = [each for each in findings if isinstance(each, Row)]
    assert [row.name for row in rows] == ["delta rule", "softmax", "values mixed, and the transpose"]
    ratios = {ratio.key: ratio.value for ratio in findings if isinstance(ratio, Ratio)}
    assert ratios["delta, over softmax"] == pytest.approx(rows[0].median / rows[1].median)
    assert 0 < ratios["delta, memory"] < 0.5


def test_rows_through_experts() -> None:
    """The floor counts the chosen experts alone."""
    config = {**experts.OLMOE, "hidden_size": 128, "intermediate_size": 32, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2}
    with Clock(runs=1, side=64) as clock:
        findings = list(experts.rows(clock, config, tokens=3))
    rows = [each for each in findings if isinstance(each, Row)]
    assert [row.size["rows"] for row in rows] == [experts.FEW, 128]
    d, wide, tokens = 128, 2 * 32, 3
    inner = tokens * (2 * d * d + 2 * d * wide) + d * tokens * (tokens + 1) // 2
    top = tokens * d * d + d * d + 2 * d * wide + d * tokens
    assert rows[1].floor is not None
    assert rows[1].floor.products == 2 * 128 * (inner + top)
    ratios = [(ratio.key, ratio.value) for ratio in findings if isinstance(ratio, Ratio)]
    assert [key for key, _ in ratios] == ["experts, of floor"] * 2 + ["experts, memory"] * 2
    assert all(value > 0 for _, value in ratios)


def test_random_four_bits() -> None:
    model = shapes.random_model({**large.CHECKED, "num_hidden_layers": 1, "vocab_size": 64})
    weight = model.layers.mlp.down_proj.weight.get_value()
    assert isinstance(weight, FourBit)
    assert np.asarray(weight[...], np.float32).std() == pytest.approx(3584**-0.5, rel=0.01)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_exponent(power: float) -> None:
    sizes = [8, 16, 32, 64]
    assert scaling.exponent(sizes, [0.1 * n**power for n in sizes]) == pytest.approx(power)


def test_interleaved() -> None:
    order: list[str] = []
    calls: dict[str, Callable[[], Any]] = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = timing.interleaved(3, calls)
    assert "".join(order) == "abcbcacab"
    assert {name: len(taken.seconds) for name, taken in timings.items()} == {"a": 3, "b": 3, "c": 3}


def test_resident_peak() -> None:
    """What a call holds at its peak and lets go of is seen."""
    took, rise = timing.once(lambda: np.ones(64 * 2**20, np.uint8).sum())
    assert took > 0
    assert rise is None or 0.9 <= rise / (64 * 2**20) <= 1.5


def test_parity(x64: None) -> None:
    (row,) = parity.rows(["llama, nf4, nested"])
    assert row.within, row


def test_a_row_beyond_its_bar_is_marked() -> None:
    good = {"float32": 1e-6, "float64": 1e-14}
    residuals = {(dtype, rule): figure for dtype, figure in good.items() for rule in parity.RULES}
    row = parity.Row("a", good, residuals, 0.0, 1.0)
    assert row.within
    assert not row._replace(logits={**good, "float64": 1e-9}).within
    worse = row._replace(residuals={**residuals, ("float32", "up"): 4e-6})
    assert not worse.within
    assert "**4.0e-06**" in str(worse)


def test_a_row_that_is_measured_anew_leaves_the_others() -> None:
    page = (parity.ROOT / "PARITY.md").read_text()
    old = next(line for line in page.splitlines() if line.startswith("| gemma2 |"))
    figures = {dtype: 1e-17 for dtype in parity.DTYPES}
    row = parity.Row("gemma2", figures, {(d, rule): 0.0 for d in figures for rule in parity.RULES}, 0.0, 1.0)
    written = parity.with_rows(page, [row])
    assert str(row) in written
    assert written.replace(str(row), old) == page
    without = page.replace(old + "\n", "")
    assert parity.with_rows(without, [row]) == written  # a new row stands in the order of the variants


def test_parity_is_committed_whole() -> None:
    """PARITY.md has a row for every variant, and none beyond its bar."""
    text = (Path(parity.ROOT) / "PARITY.md").read_text()
    for name in parity.KNOWN:
        assert f"| {name} |" in text
    circuits = text.split(conservation.HEADING)[1]
    for name in PROVEN:
        assert f"| {name} |" in circuits
    assert "**" not in text
