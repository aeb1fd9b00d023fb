"""What XLA is told: where there is a GPU's plugin, and never against what the user said."""

import os
from collections.abc import Callable

import jax
import pytest

import benchmarks.__main__ as suite
from jaxlin.common import devices
from jaxlin.report.commands.setup import configure_jax


@pytest.mark.parametrize(
    ("plugin", "said", "told"),
    [
        (True, None, devices.LIBRARY_PRODUCTS),
        (True, "--xla_a=1", f"--xla_a=1 {devices.LIBRARY_PRODUCTS}"),
        (True, "--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
        (True, "flags.txt", "flags.txt"),
        (False, None, None),
        (False, "--xla_a=1", "--xla_a=1"),
    ],
)
def test_flags(plugin: bool, said: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: object() if plugin and name == "jax_cuda13_plugin" else None)
    monkeypatch.setenv("XLA_FLAGS", said or "")
    if said is None:
        monkeypatch.delenv("XLA_FLAGS")
    devices.prefer_library_products()
    assert os.environ.get("XLA_FLAGS") == told


@pytest.mark.parametrize("start", [lambda: configure_jax("float32"), lambda: suite.main(["--gpu"])])
def test_the_command_and_the_suite_say_it(start: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: object())
    monkeypatch.setattr(jax.config, "update", lambda key, value: None)
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # put back after the test; a backend may read it here
    start()
    assert devices.LIBRARY_PRODUCTS in os.environ["XLA_FLAGS"]
