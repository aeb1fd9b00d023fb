"""The wheel: its contents, and that it works away from the checkout."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import jax
import pytest
import setuptools

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of its sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("jaxlin", "models"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert built.returncode == 0, built.stdout
    # setuptools warns of a folder of the wheel that is not among `packages`, and will leave it out one day.
    assert "is absent from the `packages` configuration" not in built.stdout, built.stdout
    return next(out.glob("*.whl"))


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    modules = {name for name in names if name.endswith(".py")}
    # models is a symlink to the folder beside jaxlin, which some versions of glob follow and others do not.
    sources = [path.relative_to(ROOT) for folder in ("jaxlin", "models") for path in (ROOT / folder).rglob("*.py")]
    expected = {f"jaxlin/{path}" if path.parts[0] == "models" else str(path) for path in sources}
    assert modules == expected
    small = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {name for name in names if name.startswith("jaxlin/loading/small/")} == {
        f"jaxlin/loading/small/{name}" for name in small
    }
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxlin/report/web").iterdir()}
    assert {name for name in names if name.startswith("jaxlin/report/web/")} == page
    assert "jaxlin/report/paper/phrases.txt" in names
    assert "jaxlin/checkpoint/config_keys.json" in names
    assert "jaxlin/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"jaxlin"}


def test_small_model_is_small() -> None:
    files = ("config.json", "model.safetensors", "tokenizer.json")
    assert sum((ROOT / "jaxlin" / "loading" / "small" / name).stat().st_size for name in files) <= 4 * 2**20


def test_it_runs_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed in an environment of its own, which sees this one's dependencies but not this checkout."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # Appended, so that the installed package comes first; an editable install elsewhere is not followed.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    program = "import jaxlin, jaxlin.models.llama as llama; print(jaxlin.__file__, llama.__file__)"
    paths = subprocess.run([python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(path.startswith(str(tmp_path / "venv")) for path in paths.stdout.split())
    jaxlin = tmp_path / "venv" / "bin" / "jaxlin"
    usage = subprocess.run([jaxlin, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert usage.returncode == 0, usage.stderr
    assert "explain" in usage.stdout
    command = [jaxlin, "explain", "Once upon a time there was a", "--json"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert '"residual"' in answer.stdout


def test_an_editable_install_in_the_folder_of_the_clone(tmp_path: Path) -> None:
    """The command of CONTRIBUTING.md: beside a clone, whose folder is named jaxlin too, the package is imported.

    Without its option, setuptools installs a finder that comes after the folders of ``sys.path``, and Python takes the
    folder of the clone for a package with no files.
    """
    clone, python = tmp_path / "jaxlin", tmp_path / "venv" / "bin" / "python"
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("jaxlin", "models"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(tmp_path / "venv", with_pip=False)
    command = re.search(r"^pip install -e \S+ (.*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert command, "CONTRIBUTING.md has no command that installs the clone"
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(
        "".join(f"{Path(each).parents[1]}\n" for each in {jax.__file__, setuptools.__file__})
    )
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--no-deps", "--no-build-isolation", "-e", str(clone), *command[1].split()]
    subprocess.run(pip, check=True)
    program = "import jaxlin, jaxlin.models.llama as llama; print(jaxlin.__file__, llama.__file__)"
    imported = subprocess.run([python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert imported.returncode == 0, imported.stderr
    assert all(path.startswith(f"{clone}/") for path in imported.stdout.split())
