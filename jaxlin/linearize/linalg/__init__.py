"""What a spectrum takes and no model is needed for: block Lanczos, Gram matrices, orthonormal bases, triplets."""

from jaxlin.linearize.linalg.gram_matrix import Gram, gram
from jaxlin.linearize.linalg.lanczos import krylov
from jaxlin.linearize.linalg.triplets import SVD, effective_rank, stable_rank, svd

__all__ = ["SVD", "Gram", "effective_rank", "gram", "krylov", "stable_rank", "svd"]
