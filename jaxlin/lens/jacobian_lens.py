r"""The Jacobian lens: matrices that carry the stream of a layer to the last, where the model's own head reads it.

$\operatorname{lens}_l(h) = \operatorname{unembed}(\operatorname{norm}(J_l\,h))$ for the residual stream $h$ after block
$l$. In the logit lens $J_l = 1$; in the Jacobian lens $J_l$ is the mean over a corpus of the derivative of the stream
after the last block with respect to that stream.

Sources: nostalgebraist, "interpreting GPT: the logit lens", 2020; Gurnee et al., "Verbalizable Representations Form a
Global Workspace in Language Models", arXiv 2607.15495, 2026.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin import plots
from jaxlin.checkpoint.hub import download
from jaxlin.common.arguments import checked
from jaxlin.common.arrays import Leaf
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import kind_of, quoted
from jaxlin.lens.files import ORDINARY, as_path, new_path, read_fields, squared_norms, write_fields
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.layers import HIGHEST
from jaxlin.results import Result, html, note
from jaxlin.steering.directions import token_direction


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class JacobianLens(Result):
    r"""One matrix for each of some layers, which maps the stream after that block to the stream after the last block.

    A lens is a pytree: pass it through `jax.jit`.

    Attributes:
        maps: $J_l$, ``[n, d_out, d_in]``, applied as ``J @ h``.
        source_layers: the layers that the matrices belong to, in ascending order and counted from 0. The last layer
            needs no matrix.
        n_prompts: the number of prompts that $J$ is the mean of.
        estimator: what was averaged: `ORDINARY`, or the local linear map with its freeze rule, as in
            ``"local_linear_map, gate"``.
        skip_first: how many positions at the start of each prompt were left out; None where a file does not say.
        squared_deviations: $\sum_p \lVert J_p - J_l \rVert_F^2$ over prompts with the maps $J_p$, ``[n]``; None where a
            file does not say.
        target_layer: the layer whose stream the matrices lead to; None for the last.
    """

    AXES: ClassVar = {"maps": ("layer", "feature", "feature")}
    LABELS: ClassVar = {"layer": ("layer", "source_layers")}

    maps: Leaf
    source_layers: tuple[int, ...] = field(metadata={"static": True})
    n_prompts: int = field(metadata={"static": True})
    estimator: str = field(default=ORDINARY, metadata={"static": True})
    skip_first: int | None = field(default=None, metadata={"static": True})
    squared_deviations: tuple[float, ...] | None = field(default=None, metadata={"static": True})
    target_layer: int | None = field(default=None, metadata={"static": True})

    @classmethod
    def from_pretrained(cls, repo: str, filename: str, *, revision: str | None = None) -> "JacobianLens":
        """A lens from a repository on the hub, such as ``"neuronpedia/jacobian-lens"``. Nothing in the file is run.

        Args:
            repo: the name of the repository.
            filename: the path of a ``.pt`` or ``.safetensors`` file in it.
            revision: a branch, tag or commit of the repository.

        Raises:
            CheckpointError: no such repository or file, or a file without a lens.
        """
        return _lens(read_fields(download(as_path(repo).as_posix(), filename, revision)))

    def __repr__(self) -> str:
        return (
            f"JacobianLens(maps of shape {jnp.shape(self.maps)}, source_layers={layer_ranges(self.source_layers)}, "
            f"n_prompts={self.n_prompts}, estimator={self.estimator!r})"
        )

    @property
    def error(self) -> Float[np.ndarray, " n"]:
        r"""The standard error of each $J_l$ as a mean over prompts, relative to its Frobenius norm.

        $\sqrt{\sum_p \lVert J_p - J_l \rVert^2 / (n (n - 1))} \,/\, \lVert J_l \rVert$ for the maps $J_p$ of $n$
        prompts and their mean $J_l$. NaN for a lens of one prompt, or where a file has no squared deviations.
        """
        if self.squared_deviations is None or self.n_prompts < 2:
            return np.full(len(self.source_layers), np.nan)
        variance = np.asarray(self.squared_deviations) / (self.n_prompts * (self.n_prompts - 1))
        return np.sqrt(variance / squared_norms(self.maps))

    def tables(self) -> list[dict[str, Any]]:
        """A row for each layer, with the norm of its matrix and the standard error."""
        norms = np.sqrt(squared_norms(self.maps))
        return [{"layer": np.asarray(self.source_layers), "norm": norms, "error": self.error}]

    def save(self, path: str | PathLike[str], *, dtype: str | None = None) -> None:
        """Write this lens to a ``.pt`` or ``.safetensors`` file, see `jaxlin.lens.save`."""
        save(self, path, dtype=dtype)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "JacobianLens":
        """The lens in a ``.pt`` or ``.safetensors`` file, see `jaxlin.lens.load`."""
        return load(path)

    def _draw(self, ax: Any) -> None:
        """The standard error of each layer's matrix, or its norm where the error is not known."""
        table = self.tables()[0]
        name = "norm" if np.isnan(table["error"]).all() else "error"
        plots.curves(ax, table["layer"], {name: table[name]})
        title = f"Jacobian lens of {self.n_prompts} prompts"
        plots.write(ax, title=title, xlabel="layer", ylabel="Frobenius norm" if name == "norm" else "standard error")

    def _repr_html_(self) -> str:
        """A row for each layer."""
        return html.heading(self) + html.rows(self, self.tables()[0])

    def at(self, layer: int) -> Float[Array | np.ndarray, "d e"]:
        """The matrix $J_l$ of one layer, ``[d_out, d_in]``.

        Raises:
            JaxlinError: a layer that this lens has no matrix for.
        """
        if layer not in self.source_layers:
            raise JaxlinError(f"Lens: expected a layer of {layer_ranges(self.source_layers)}; found {quoted(layer)}.")
        return self.maps[self.source_layers.index(layer)]

    def transport(self, h: Float[Array | np.ndarray, "*b d"], layer: int) -> Float[Array, "*b d"]:
        """$J_l h$: the stream `h` after block `layer`, carried to the stream before the final norm.

        Raises:
            JaxlinError: a layer that this lens has no matrix for, or vectors of another width.
        """
        matrix = self.at(layer)
        if jnp.shape(h)[-1:] != matrix.shape[1:]:
            raise JaxlinError(f"Lens: expected vectors of shape (..., {matrix.shape[1]}); found {jnp.shape(h)}.")
        return jnp.einsum("de,...e->...d", matrix, h, precision=HIGHEST)

    def direction(self, model: Decoder, token: int, layer: int) -> Float[Array, " d"]:
        r"""$J_l^\top w$, the direction of a token at `layer`, for the token's row $w$ of the unembedding.

        It can be passed to `jaxlin.steering.add`, `ablate` or `swap` at ``("resid_post", layer)``. The final norm and
        its weight are left out, as they are in the published lens vectors.

        Raises:
            JaxlinError: a layer that this lens has no matrix for, a model of another width, or an id that no token has.
        """
        check_lens(model, self)
        return jnp.einsum("de,d->e", self.at(layer), token_direction(model, token), precision=HIGHEST)


@checked
def load(path: str | PathLike[str]) -> JacobianLens:
    """The lens in a ``.pt`` or ``.safetensors`` file. Nothing in the file is run.

    A ``.pt`` may be a published lens or the checkpoint of a fit that was not finished (``jacobian_sum``). A lens on the
    hub is loaded by `JacobianLens.from_pretrained`.

    Raises:
        CheckpointError: no such file, or one without a lens.
    """
    return _lens(read_fields(as_path(path)))


def _lens(fields: dict[str, Any]) -> JacobianLens:
    """The lens of the fields in a file, with what the file says of where it is from."""
    provenance = fields.pop("provenance")
    lens = JacobianLens(**fields)
    note(lens, provenance)
    return lens


@checked
def save(lens: JacobianLens, path: str | PathLike[str], *, dtype: str | None = None) -> None:
    """Write `lens` to a ``.pt`` in the layout of published lenses, which their tools read, or to safetensors.

    A ``.pt`` has ``J``, ``n_prompts``, ``source_layers`` and ``d_model``, and the other fields under ``metadata``. Both
    kinds say where the lens is from, if that is known: the model, its revision, the corpus and the versions.

    Args:
        lens: the lens.
        path: a new file; its ending says which kind.
        dtype: the dtype of the matrices in the file, ``"float16"``, ``"bfloat16"`` or ``"float32"``. By default
            float16, as in published lenses, or float32 where an entry is too large for float16.

    Raises:
        JaxlinError: another kind of file, one that exists, no such dtype, or entries too large for it.
    """
    if not isinstance(lens, JacobianLens):
        raise JaxlinError(f"Lens: expected one, as jaxlin.lens.fit gives; found {kind_of(lens)}.")
    file = new_path(path)
    write_fields(file, np.asarray(lens.maps), lens.source_layers, lens.n_prompts, _metadata(lens), dtype)


def _metadata(lens: JacobianLens) -> dict[str, Any]:
    """The fields of a lens that not every file has, under the names that other readers use for them."""
    optional = {
        "skip_first_positions": lens.skip_first,
        "target_layer": lens.target_layer,
        "squared_deviations": None if lens.squared_deviations is None else list(lens.squared_deviations),
    }
    optional["provenance"] = None if lens.provenance is None else lens.provenance.to_dict()
    return {"estimator": lens.estimator, **{key: value for key, value in optional.items() if value is not None}}


def check_lens(model: Decoder, lens: Any) -> None:
    """Raise an error unless `lens` is a lens of `model`.

    Raises:
        JaxlinError: `lens` is not a lens, or one of another width or depth.
    """
    if not isinstance(lens, JacobianLens):
        raise JaxlinError(
            f"Lens: expected one, as jaxlin.lens.fit or load gives; found {kind_of(lens)}. "
            "Without any, the logit lens is read."
        )
    width, depth = model.config.hidden_size, model.config.num_hidden_layers
    expected = (len(lens.source_layers), width, width)
    if jnp.shape(lens.maps) != expected or not all(0 <= layer < depth for layer in lens.source_layers):
        raise JaxlinError(
            f"Lens: expected matrices of shape {expected} for layers in 0..{depth - 1}, as this model has; "
            f"found {jnp.shape(lens.maps)} for {layer_ranges(lens.source_layers)}. It belongs to another model."
        )
    if lens.target_layer not in (None, depth - 1, -1):
        raise JaxlinError(
            f"Lens: expected one that leads to the last layer, {depth - 1}, which the final norm reads; found one that "
            f"leads to layer {lens.target_layer}."
        )


@checked
def merge(lenses: Sequence[JacobianLens]) -> JacobianLens:
    """The lens of all prompts together, from lenses of the parts of a corpus.

    Raises:
        JaxlinError: no lenses, or lenses that differ in estimator, layers, width or the positions left out.
    """
    if not lenses:
        raise JaxlinError("Merge: expected one lens or more; found none.")
    first = lenses[0]
    for lens in lenses:
        for name in ("estimator", "source_layers", "skip_first", "target_layer"):
            if getattr(lens, name) != getattr(first, name):
                values = " and ".join(quoted(getattr(each, name)) for each in (first, lens))
                raise JaxlinError(f"Merge: expected lenses of one {name}; found {values}.")
        if jnp.shape(lens.maps) != jnp.shape(first.maps) or lens.n_prompts < 1:
            raise JaxlinError(
                f"Merge: expected matrices of shape {jnp.shape(first.maps)} and a number of prompts; "
                f"found {jnp.shape(lens.maps)}, of {lens.n_prompts}."
            )
    n_prompts = sum(lens.n_prompts for lens in lenses)
    maps = sum(np.asarray(lens.maps, np.float64) * (lens.n_prompts / n_prompts) for lens in lenses)
    within = [lens.squared_deviations for lens in lenses if lens.squared_deviations is not None]
    total = None
    if len(within) == len(lenses):
        # The deviations of the prompts from the mean of their part, and of the parts' means from the mean of all.
        between = sum(lens.n_prompts * squared_norms(np.asarray(lens.maps, np.float64) - maps) for lens in lenses)
        total = tuple((np.sum(within, axis=0) + between).tolist())
    dtype = np.result_type(np.float32, *(np.asarray(lens.maps).dtype for lens in lenses))
    merged = replace(first, maps=np.asarray(maps, dtype), n_prompts=n_prompts, squared_deviations=total)
    if all(lens.provenance == first.provenance for lens in lenses):
        note(merged, first.provenance)
    return merged


def layer_ranges(layers: Sequence[int]) -> str:
    """Layers in words: ``0..4, 7``."""
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ", ".join(f"{first}" if first == last else f"{first}..{last}" for first, last in ranges)
