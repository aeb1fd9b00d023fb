"""Lenses: the residual stream of each layer, read as tokens by the model's own final norm and unembedding.

The logit lens reads the stream as it is. The Jacobian lens first maps it to the last layer by a matrix that is fitted
on a corpus. The exact lens splits the output of one prompt into parts that add up to it.

Names in Anthropic's `jlens` and in TransformerLens, and here:

==============================================  ====================================================================
there                                           here
==============================================  ====================================================================
`fit(model, prompts, source_layers=,            ``fit(model, prompts, source_layers=, max_seq_len=, skip_first=,
max_seq_len=, skip_first=, dim_batch=,          dim_batch=, out=)``; prompts are token ids,
checkpoint_path=)`                              ``[tokenizer.encode(text) for text in texts]``
`JacobianLens.from_pretrained(repo,             the same
filename=)`
`lens.source_layers`, `lens.n_prompts`          the same
`lens.jacobians[layer]`                         ``lens.at(layer)``; all of them are stacked in ``lens.maps``
`lens.transport(h, layer)`                      the same
`lens.apply`, `lens.readout`                    ``read(model, x, lens)`` for the best tokens;
                                                ``logits(model, lens.transport(h, layer))`` for the logits of all
`use_jacobian=False`                            ``read(model, x)``
`lens.lens_vectors(model, tokens, layer)`       ``lens.direction(model, token, layer)``
`lens.save`, `load`, `merge`                    ``save(lens, path)``, ``load(path)``, ``merge(lenses)``
==============================================  ====================================================================
"""

from jaxlin.lens.batches import read_batch
from jaxlin.lens.exact_lens import ExactLens, exact
from jaxlin.lens.files import ORDINARY
from jaxlin.lens.fitting import fit
from jaxlin.lens.jacobian_lens import JacobianLens, load, merge, save
from jaxlin.lens.reading import LensReading, logits, read

__all__ = [
    "ORDINARY",
    "ExactLens",
    "JacobianLens",
    "LensReading",
    "exact",
    "fit",
    "load",
    "logits",
    "merge",
    "read",
    "read_batch",
    "save",
]
