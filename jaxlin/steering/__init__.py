r"""Steering: generation of texts while the residual stream is edited, by the paper's operators or by baselines.

An `Edit` is a function of the value at a site, with a strength that is an ordinary number; at 0 it changes nothing.
Edits apply while a text is generated (``generate(..., edits=[...])``) or in one forward pass (`edited`). A dose curve
measures what an edit does to texts as its strength grows.

=================  ====================================================  ==============================
made by            value $h_k$ at position $k$                           strength $s$
=================  ====================================================  ==============================
`paper_equation`   $(1-s)\,h_k + s\,c_k$                                 $1 - \lambda$
`paper_code`       $h_k + s\,\lVert h_k\rVert\,c_k/(2\lVert c_k\rVert)$  $\lambda$, a share of the norm
`add`              $h_k + s\,\lVert h_k\rVert\,a$                        a share of the norm
`ablate`           $h_k - s\,QQ^\top h_k$                               the share removed
`swap`             $h_k + s\,(\alpha-\beta)(b-a)$                       1 exchanges them
=================  ====================================================  ==============================

$c_k = \sum_{j \le k} J_{j \bmod T}\,e_j$ is the local linear map $J$ of a steering phrase of $T$ tokens applied to the
embeddings $e_j$ of the text that is generated.
"""

from jaxlin.activations import (
    Ablate,
    Add,
    Apply,
    Edit,
    Replace,
    Resample,
    SteeringError,
    Swap,
    Where,
    ablate,
    add,
    apply,
    mean_ablation,
    patch,
    replace,
    resample_ablation,
    swap,
    zero_ablation,
)
from jaxlin.steering.directions import mean_difference, token_direction
from jaxlin.steering.dose import DoseCurve, dose_curve
from jaxlin.steering.edited_model import edited
from jaxlin.steering.generation import Generation, generate, generate_batch
from jaxlin.steering.map_edits import PaperCode, PaperEquation, paper_code, paper_equation

__all__ = [
    "Ablate",
    "Add",
    "Apply",
    "DoseCurve",
    "Edit",
    "Generation",
    "PaperCode",
    "PaperEquation",
    "Replace",
    "Resample",
    "SteeringError",
    "Swap",
    "Where",
    "ablate",
    "add",
    "apply",
    "dose_curve",
    "edited",
    "generate",
    "generate_batch",
    "mean_ablation",
    "mean_difference",
    "paper_code",
    "paper_equation",
    "patch",
    "replace",
    "resample_ablation",
    "swap",
    "token_direction",
    "zero_ablation",
]
