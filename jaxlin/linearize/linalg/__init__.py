"""Linear algebra that needs no model: block Lanczos, Gram matrices, orthonormal bases and singular triplets."""

from jaxlin.linearize.linalg.gram_matrix import Gram, gram_from_rows
from jaxlin.linearize.linalg.lanczos import krylov_svd
from jaxlin.linearize.linalg.triplets import SVD, effective_rank, stable_rank, svd

__all__ = ["SVD", "Gram", "effective_rank", "gram_from_rows", "krylov_svd", "stable_rank", "svd"]
