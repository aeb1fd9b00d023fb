r"""The precision of products of float32 matrices: chosen once, at loading, for every product of a model and its map.

GPUs and TPUs have units that multiply numbers of 8 or 11 significant bits. JAX uses them for float32 by default, and
the map is then wrong in its third digit. Each factor may instead be split into several such numbers, and the products
of the parts added up.

====================  ==========================  ============================  ====
precision             GPU                         TPU                           CPU
====================  ==========================  ============================  ====
``highest``           float32                     bfloat16, six products        as it is
``high``              TF32, three products        bfloat16, three products      as it is
``fast``              TF32, one product           bfloat16, one product         as it is
``BF16_BF16_F32_X6``  bfloat16, six products      bfloat16, six products        as it is
``BF16_BF16_F32_X3``  bfloat16, three products    bfloat16, three products      as it is
====================  ==========================  ============================  ====

The last two are named as in `jax.lax.DotAlgorithmPreset`, for GPUs whose bfloat16 units are the fastest by far. Only
float32 is affected: other dtypes are multiplied in their own precision.

On an H200 the dense map of a random model of Llama-3.2-3B's shape at 8 tokens took 1.35 s at a residual of 2.3e-6 in
``highest``, 0.71 s at 1.9e-5 in ``high``, 0.26 s at 1.3e-3 in ``fast``, 0.66 s at 8.2e-6 in six and 0.35 s at 3.6e-5 in
three products of bfloat16: such units add up in fewer bits than float32 has, however many parts a factor is split into.
``highest`` is the default because it is the fastest that stays below 3e-6. ``python -m benchmarks --gpu`` measures
this, and ``--only precision`` on a checkpoint.
"""

from typing import Literal

import jax

from jaxlin.common.errors import one_of

Precision = Literal["highest", "high", "fast", "BF16_BF16_F32_X6", "BF16_BF16_F32_X3"]

PRECISIONS: tuple[Precision, ...] = ("highest", "high", "fast", "BF16_BF16_F32_X6", "BF16_BF16_F32_X3")

MATMUL_PRECISIONS: dict[str, dict[Precision, str]] = {
    "gpu": {
        "high": "TF32_TF32_F32_X3",
        "fast": "TF32_TF32_F32",
        "BF16_BF16_F32_X6": "BF16_BF16_F32_X6",
        "BF16_BF16_F32_X3": "BF16_BF16_F32_X3",
    },
    "tpu": {"high": "high", "fast": "default", "BF16_BF16_F32_X3": "high"},
}
"""The argument of `jax.default_matmul_precision` on each backend; ``"highest"`` for a precision without an entry."""


def checked_precision(precision: str) -> Precision:
    """Return `precision` if it is the name of one.

    Raises:
        JaxlinError: no precision has this name.
    """
    return one_of("Precision", precision, PRECISIONS)


def matmul_precision(precision: Precision, dtype: str) -> str:
    """The argument of `jax.default_matmul_precision` for products of `dtype` on the backend in use."""
    backend = MATMUL_PRECISIONS.get(jax.default_backend(), {})
    return backend.get(precision, "highest") if dtype == "float32" else "highest"
