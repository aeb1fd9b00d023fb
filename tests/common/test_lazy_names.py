"""Names that are imported when they are first used, and what a start of the command imports."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = "jax flax numpy scipy tokenizers safetensors huggingface_hub tqdm matplotlib pandas jinja2 networkx jaxtyping"


@pytest.mark.parametrize("package", ["jaxlin", "jaxlin.report"])
def test_type_checkers_see_what_is_imported(package: str) -> None:
    """A package says twice where its names are from: in imports for type checkers, and in a table for Python."""
    module = importlib.import_module(package)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imported, packages = {}, set()
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        assert all(alias.asname is None for alias in statement.names)
        names = {alias.name for alias in statement.names}
        if statement.module == package:
            packages |= names
        else:
            imported.update(dict.fromkeys(names, statement.module))
    (assignment,) = block.orelse
    assert isinstance(assignment, ast.Assign)
    assert isinstance(assignment.value, ast.Call)
    table = ast.literal_eval(assignment.value.args[1])
    assert {name: source for source, names in table.items() for name in names} == imported
    assert {*imported, *packages} == set(module.__all__)
    assert {*imported, *packages, "__all__"} <= set(dir(module))
    for name in imported:
        assert getattr(module, name) is getattr(importlib.import_module(imported[name]), name)
    for name in packages:
        assert getattr(module, name) is importlib.import_module(f"{package}.{name}")


def run(program: str, *arguments: str) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_is_imported_when_it_is_used() -> None:
    program = f"""
import sys
import jaxlin
assert not set(sys.modules) & set({HEAVY.split()})
assert not hasattr(jaxlin, "lod") and not hasattr(jaxlin, "__wrapped__")
try:
    jaxlin.lod
except AttributeError as error:
    print(error)
print(jaxlin.JaxlinError.__name__)
assert "jax" not in sys.modules
print(jaxlin.checkpoint.safetensors.SafetensorsFile.__name__, jaxlin.models.__name__)
from jaxlin import *
from jaxlin import plots
print(load.__module__, jaxlin.lens.exact.__name__, plots.__name__, spectrum.__name__)
assert not set(sys.modules) & {{"matplotlib", "pandas", "jinja2", "networkx", "torch", "transformers"}}
"""
    assert run(program).splitlines() == [
        "module 'jaxlin' has no attribute 'lod'",
        "JaxlinError",
        "SafetensorsFile jaxlin.models",
        "jaxlin.loading.model exact jaxlin.plots jaxlin.spectrum",
    ]


@pytest.mark.parametrize("command", [[], ["explain"]])
def test_help_imports_no_model(command: list[str]) -> None:
    program = """
import runpy, sys
sys.argv = ["jaxlin", *sys.argv[1:], "--help"]
try:
    runpy.run_module("jaxlin", run_name="__main__")
except SystemExit as end:
    assert not end.code
print(*sys.modules, sep="\\n")
"""
    usage, *imported = re.split(r"^(?=sys$)", run(program, *command), flags=re.MULTILINE)
    assert "explain" in usage
    modules = set("".join(imported).split())
    assert "typer" in modules
    assert not modules & set(HEAVY.split())
    ours = {name for name in modules if name.startswith("jaxlin.")}
    light = ("jaxlin.__main__", "jaxlin.common", "jaxlin.report", "jaxlin.report.commands")
    assert {name for name in ours if not name.startswith("jaxlin.report.commands.")} <= {
        *light,
        "jaxlin.common.errors",
        "jaxlin.common.lazy_names",
        "jaxlin.common.printable",
    }
