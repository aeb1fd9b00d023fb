r"""Activations: the values of a model at named sites, read and changed.

`record` runs a model once and returns them, stacked over its layers. An `Edit` is a function of the value at a site,
with a strength that is an ordinary number. `with_edits` gives a model that carries edits, of which everything else in
jaxlin can be asked; `jaxlin.generate` takes edits too.

===================  ==========================================  ==============================
made by              value $h_t$ at position $t$                 strength $s$
===================  ==========================================  ==============================
`add`                $h_t + s\,\lVert h_t\rVert\,a$, or $h_t + s\,a$   a share of the norm, or absolute
`ablate`             $h_t - s\,QQ^\top h_t$                      the share removed
`swap`               $h_t + s\,(\alpha-\beta)(b-a)$              1 exchanges them
`apply`              $h_t + s\,(f(h) - h)_t$                     the share of the way
`replace`            $h_t + s\,(c - h_t)$                        the share of the way
`zero_ablation`      the same with $c = 0$                       the same
`mean_ablation`      with the mean over prompts                  the same
`resample_ablation`  with the value at a random token of others  the same
`patch`              with the value in another prompt, by $t$    the same
===================  ==========================================  ==============================
"""

from jaxlin.activations.batches import Batch, map_prompts, record_batch
from jaxlin.activations.editing import check_edits, with_edits
from jaxlin.activations.recording import Activations, record
from jaxlin.activations.value_edits import (
    Apply,
    Replace,
    Resample,
    apply,
    mean_ablation,
    patch,
    replace,
    resample_ablation,
    zero_ablation,
)
from jaxlin.activations.vector_edits import Ablate, Add, Swap, ablate, add, swap
from jaxlin.nn.edits import Edit, SteeringError, Where
from jaxlin.nn.site_names import SITES, parse_site

__all__ = [
    "SITES",
    "Ablate",
    "Activations",
    "Add",
    "Apply",
    "Batch",
    "Edit",
    "Replace",
    "Resample",
    "SteeringError",
    "Swap",
    "Where",
    "ablate",
    "add",
    "apply",
    "check_edits",
    "map_prompts",
    "mean_ablation",
    "parse_site",
    "patch",
    "record",
    "record_batch",
    "replace",
    "resample_ablation",
    "swap",
    "with_edits",
    "zero_ablation",
]
