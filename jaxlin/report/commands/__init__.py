"""What each command of ``jaxlin`` does, one file a command.

A file imports what declares its options, and no model: JAX and the packages of jaxlin are imported when the command
runs, so that ``--help`` and the completion of a shell take no time. ``jaxlin.__main__`` puts the commands together.
"""

from jaxlin.report.commands.check import check
from jaxlin.report.commands.compare import compare
from jaxlin.report.commands.explain import explain
from jaxlin.report.commands.generate import generate
from jaxlin.report.commands.lens import lens
from jaxlin.report.commands.models import models
from jaxlin.report.commands.paper import paper
from jaxlin.report.commands.plan import plan
from jaxlin.report.commands.steer import steer

__all__ = ["check", "compare", "explain", "generate", "lens", "models", "paper", "plan", "steer"]
