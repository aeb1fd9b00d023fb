"""How much memory there is."""

import os

import jax


def physical_memory() -> int:
    """Bytes of the present device, or of the machine where it says nothing."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or host_memory()


def host_memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """Of the bytes of `physical_memory`, those that no array on the present device takes."""
    stats = jax.devices()[0].memory_stats() or {}
    return physical_memory() - stats.get("bytes_in_use", 0)
