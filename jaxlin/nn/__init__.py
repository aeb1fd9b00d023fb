"""A decoder written as `A(x)·x`: its layers, the places where they can be read and changed, and its shards.

Every nonlinear factor is computed through one function, so that a forward pass can detach, record or replay it. Family
files build their models from the blocks and layers of this package; the packages above it take a finished `Decoder`.
"""

from jaxlin.nn.config import Config
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.freeze_rules import RULES, BranchFactors, FreezeRule, Rule
from jaxlin.nn.prompt import Prompt, PromptError
from jaxlin.nn.sharding import mesh_over
from jaxlin.nn.sites import Place, Site, SiteError

__all__ = [
    "RULES",
    "BranchFactors",
    "Config",
    "Decoder",
    "FreezeRule",
    "Place",
    "Prompt",
    "PromptError",
    "Rule",
    "Site",
    "SiteError",
    "mesh_over",
]
