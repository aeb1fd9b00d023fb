"""The device: how much memory it has, and the flags of XLA that jaxlin's own commands set."""

import os
from importlib.util import find_spec

import jax

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
"""Packages that bring XLA for NVIDIA's GPUs. Without them no flag is set: XLA ends a process that sets one it lacks."""

LIBRARY_PRODUCTS = "--xla_gpu_enable_triton_gemm=false"
"""The flag that has matrix products computed by the vendor's library alone.

In float32 the library is as fast as the kernels that XLA would generate, compile and time for each shape, and that
search takes most of a program's compile time.
"""


def physical_memory() -> int:
    """Bytes of memory of the first device, or of the machine if the device reports none."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or host_memory()


def host_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """Bytes of `physical_memory` that no array on the first device occupies."""
    stats = jax.devices()[0].memory_stats() or {}
    return physical_memory() - stats.get("bytes_in_use", 0)


def prefer_library_products() -> None:
    """Append `LIBRARY_PRODUCTS` to ``XLA_FLAGS``, unless the user has set that flag; call it before JAX computes."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):
        return  # the name of a file of flags
    if LIBRARY_PRODUCTS.partition("=")[0] not in flags and any(map(find_spec, PLUGINS)):
        os.environ["XLA_FLAGS"] = f"{flags} {LIBRARY_PRODUCTS}".strip()
