r"""The contribution of each expert that a router chose, at every layer and token, to a logit.

With nonlinear factors frozen, the logit is linear in what each expert writes. For the gradient $g_{lt}$ of the logit in
the output of the MLP of layer $l$ at token $t$, by all paths through later layers, the expert $e_i$ of that token
contributes $g_{lt} \cdot w_i\,D_{e_i} h_{lti}$, with its weight $w_i$ and its hidden neurons $h_{lti}$. At each layer
and token the contributions of the experts, of the shared expert and of the biases sum to that of the MLP.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlin import plots
from jaxlin.attribution.expert_parts import experts_of, outputs_without_neurons, part_of_neurons, sum_parts
from jaxlin.attribution.result import Experts
from jaxlin.common.arguments import checked
from jaxlin.common.errors import JaxlinError
from jaxlin.common.printable import kind_of
from jaxlin.linearize.backward import pull_back
from jaxlin.linearize.frozen import record, rule_of
from jaxlin.linearize.targets import ResolvedTarget, Target, Words, resolve_target, target_direction
from jaxlin.nn.biases import has_biases
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import Rule
from jaxlin.nn.layers import HIGHEST
from jaxlin.nn.sites import InnerSite, position_in
from jaxlin.results import Result, traced_to
from jaxlin.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, repr=False)
class ExpertContributions(Result):
    r"""The contributions of experts to one value, by all paths.

    At each layer and token they sum to that of the MLP: ``experts.contribution.sum(-1) + experts.shared + experts.bias
    == mlp``.

    Attributes:
        value: the logit, difference of logits or $u \cdot f(x)$, from the forward pass.
        experts: the experts of each token, with the choice of the router; its arrays have an axis of tokens.
        mlp: the contribution of what the MLP of each of these layers adds to the stream of each token, ``[m, t]``.
    """

    AXES: ClassVar = {"mlp": ("router", "position")}
    PROPERTIES: ClassVar = ("defect",)

    value: float
    experts: Experts
    mlp: Float[np.ndarray, "m t"]

    @property
    def defect(self) -> float:
        """The largest error of the sum at any layer and token, relative to the largest of all contributions."""
        experts = self.experts
        total = experts.contribution.sum(-1) + experts.bias + (0 if experts.shared is None else experts.shared)
        scale = max(np.abs(self.mlp).max(), np.abs(experts.contribution).max())
        return float(np.abs(total - self.mlp).max() / scale) if scale else 0.0

    def _draw(self, ax: Any) -> None:
        """A heat map of what the chosen experts of each layer contribute together, layer by token."""
        by_token = self.experts.contribution.sum(-1)
        rows = [str(layer) for layer in np.asarray(self.experts.layer).tolist()]
        plots.heat_map(ax, by_token, rows, self._labels("position", by_token.shape[1]))
        plots.write(ax, title=f"Contributions of the chosen experts to {self.value:.3f}", ylabel="layer")

    def tables(self) -> list[dict[str, Any]]:
        """One table, with a row for each expert that was chosen."""
        return self.experts.tables()[:1]


@checked
def experts(
    model: Decoder,
    x: Float[Array, "t d"],
    target: Target | Words,
    *,
    position: int = -1,
    rule: Rule | str | None = None,
    tokenizer: Tokenizer | None = None,
) -> ExpertContributions:
    """The exact contribution of each expert that was chosen, at every layer and token, to the logit of `target`.

    It takes one forward pass, which records, and one backward pass. `jaxlin.attribute` gives the direct contributions,
    of what the experts write at the position of the logit, apart from later layers.

    Args:
        model: a mixture of experts.
        x: the input embeddings.
        target: a token id, a pair of ids or of words, or a direction, as in `jaxlin.attribute`.
        position: the position of the logit; a negative one counts from the last token.
        rule: the freeze rule of gated MLPs, by default the model's own.
        tokenizer: the model's tokenizer, which encodes words.

    Raises:
        PromptError: `x` does not have the shape ``[t, d]``.
        JaxlinError: the model has no experts, or an invalid target or rule.
        SiteError: there is no such position.
        TokenizerError: a word is not one token.
    """
    model.check_embeddings(x)
    position = position_in(x.shape[0], position)
    resolved = resolve_target(model, target, x, position, tokenizer)
    parts = jax.device_get(_contributions(model, x, position, resolved, rule_of(model, rule)))
    result = ExpertContributions(float(parts[0]), *parts[1:])
    return traced_to(result, model, x, tokenizer=tokenizer, rule=rule, target=resolved, position=position)


@functools.partial(jax.jit, static_argnames="rule")
def _contributions(
    model: Decoder, x: Float[Array, "t d"], position: Any, target: ResolvedTarget, rule: Rule
) -> tuple[Float[Array, ""], Experts, Float[Array, "m t"]]:
    recording = record(model, x, ("mlp_out", InnerSite.NEURONS, InnerSite.ROUTE), rule=rule)
    outputs, neurons, routes = (recording.sites[kind] for kind in ("mlp_out", InnerSite.NEURONS, InnerSite.ROUTE))
    value, _, direction = target_direction(model, recording, target, position)
    # A factor on the neurons of an expert has the expert's contribution for its gradient, and takes no memory.
    parts = model.layout.map(functools.partial(sum_parts, model), neurons, routes)

    def probes(added: Any, neurons: Float[Array, "t n"], route: Any) -> dict[str, Array]:
        mlp_out, factor = added
        return {"mlp_out": mlp_out, InnerSite.NEURONS: factor[:, part_of_neurons(model, neurons, route)] * neurons}

    gradients = pull_back(
        model, recording.frozen, direction, (outputs, parts), probes=probes, constants=(neurons, routes)
    )
    in_outputs, contributions = gradients.added
    to_tokens = functools.partial(jnp.einsum, "ltd,ltd->lt", in_outputs, precision=HIGHEST)
    bias = jnp.zeros(outputs.shape[:2], outputs.dtype)
    if has_biases(model):
        bias = to_tokens(outputs_without_neurons(model, recording.frozen, neurons))
    experts = experts_of(model.layout, routes, contributions, bias)
    if experts is None:
        raise JaxlinError(
            f"Experts: expected a mixture of experts; found {kind_of(model)} without any. jaxlin.attribute "
            "gives the contributions of layers and of single neurons."
        )
    return value, experts, to_tokens(outputs)[experts.layer]
