"""What each command of ``jaxlin`` does, one file a command.

A file imports what declares its options, and no model: JAX and the packages of jaxlin are imported when the command
runs, so that ``--help`` and the completion of a shell take no time. ``jaxlin.__main__`` puts the commands together.
"""

from jaxlin.report.commands.check import check
from jaxlin.report.commands.explain import explain
from jaxlin.report.commands.models import models
from jaxlin.report.commands.paper import paper
from jaxlin.report.commands.plan import plan

__all__ = ["check", "explain", "models", "paper", "plan"]
