"""The command `jaxlin`, run as a user runs it."""

import os
import subprocess
import sys

PROMPT = "The bridge out of the town is the"


def jaxlin_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-c", "from jaxlin.__main__ import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
