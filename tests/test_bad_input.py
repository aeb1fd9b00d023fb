"""Every public function refuses wrong arguments with jaxlin's error, of one line."""

import json
import subprocess
import sys
from pathlib import Path


def test_every_public_function_refuses_wrong_arguments() -> None:
    """A function that is new in a documented package is called too: see `bad_calls`.

    Arguments in the wrong order, a text, an empty or ragged list, a folder and an unknown object in the place of each
    argument, and traced arrays, for which a result is right as well.
    """
    script = Path(__file__).with_name("bad_calls.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    called = json.loads(run.stdout.splitlines()[-1])
    assert {"jaxlin.attribution.attribute", "jaxlin.lens.read", "jaxlin.plots.bars", "jaxlin.load"} <= set(
        called["functions"]
    )
    assert called["faults"] == {}
