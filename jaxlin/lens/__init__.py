"""Lenses: the logit lens, the Jacobian lens and its fit, and the exact lens of one prompt.

What Anthropic's `jlens` and TransformerLens call what is here:

==========================================  ======================================================================
there                                       here
==========================================  ======================================================================
`fit(model, prompts, source_layers=,        ``fit(model, prompts, layers=, longest=, skip_first=, block=, out=)``, of
max_seq_len=, skip_first=, dim_batch=,      token ids: ``[tokenizer.encode(text) for text in texts]``
checkpoint_path=)`
`lens.jacobians`, `n_prompts`               ``lens.maps``, stacked in the order of ``lens.layers``; ``lens.prompts``
`JacobianLens.from_pretrained(repo,         ``load(repo, filename)``
filename=)`
`lens.apply`, `lens.readout`                ``read(model, x, lens)``, the best tokens; all logits of a stream `h` are
                                            ``logits(model, lens.transport(h, layer))``
`use_jacobian=False`                        ``read(model, x)``
`lens.lens_vectors(model, tokens, layer)`   ``lens.direction(model, token, layer)``
`lens.save`, `load`, `merge`                ``save(lens, path)``, ``load(path)``, ``merge(lenses)``
==========================================  ======================================================================
"""

from jaxlin.lens.exact_lens import ExactLens, exact
from jaxlin.lens.files import load, save
from jaxlin.lens.fitting import fit
from jaxlin.lens.jacobian_lens import ORDINARY, JacobianLens, merge
from jaxlin.lens.reading import Reading, logits, read

__all__ = [
    "ORDINARY",
    "ExactLens",
    "JacobianLens",
    "Reading",
    "exact",
    "fit",
    "load",
    "logits",
    "merge",
    "read",
    "save",
]
