"""How much memory there is."""

import os

import jax


def physical_memory() -> int:
    """Bytes of the present device, or of the machine where it says nothing."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
