"""What XLA is told before it starts, where the process is jaxlin's own: in its commands and its benchmarks."""

import os
from importlib.util import find_spec

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
"""What brings XLA for NVIDIA's GPUs. Elsewhere nothing is told: XLA ends a process that names a flag it lacks."""

LIBRARY_PRODUCTS = "--xla_gpu_enable_triton_gemm=false"
"""Products by the vendor's library alone. In float32 it multiplies as fast as what XLA finds by generating, compiling
and timing kernels of its own for each shape, which takes most of the time that a program takes to compile."""


def prefer_library_products() -> None:
    """Append `LIBRARY_PRODUCTS` to ``XLA_FLAGS``, unless it says something about that; before JAX computes anything."""
    said = os.environ.get("XLA_FLAGS", "").strip()
    if said and not said.startswith("-"):
        return  # the name of a file of flags
    if LIBRARY_PRODUCTS.partition("=")[0] not in said and any(map(find_spec, PLUGINS)):
        os.environ["XLA_FLAGS"] = f"{said} {LIBRARY_PRODUCTS}".strip()
