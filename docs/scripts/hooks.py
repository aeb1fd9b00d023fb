"""What MkDocs calls while it builds: formulas as MathML, drawings in the theme's colours, results and notebooks.

Browsers draw MathML themselves, so that formulas need no script and no font from a network. KaTeX and MathJax are
scripts, which would have to be shipped beside the site.
"""

import html
import itertools
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import notebooks

ROOT = Path(__file__).parents[2]
RESULTS = ("BENCHMARKS.md", "PARITY.md", "benchmarks/results/cost.svg", "benchmarks/results/circuits.svg")
"""Files that programs write outside docs/, which are pages and pictures of the site."""

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
BARS = {"&#x02016;": "||", "&#x0007C;": "|"}
"""Bars of norms; two single ones, because the double one is not in every font."""

BAR = re.compile(rf"<mo>({'|'.join(BARS)})</mo>")
"""A bar is spaced as an operator unless it is said whether it opens or closes."""
FIGURE = re.compile(r'<img alt="([^"]*)" src="(?:\.\./)*figures/([\w-]+)\.svg" ?/?>')


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of measured results, and a page for each notebook, which stays beside it to be downloaded."""
    for name in RESULTS:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for path in notebooks.paths():
        page = notebooks.page(notebooks.read(path), path.stem)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Put MathML in the place of formulas, and the drawings themselves in the place of references to them."""
    content = FORMULA.sub(_mathml, content)
    return FIGURE.sub(_drawing, content)


def _mathml(match: re.Match[str]) -> str:
    formula = convert(html.unescape(match[2]), display="inline" if match[1] == "span" else "block")
    forms = itertools.cycle(("prefix", "postfix"))
    return BAR.sub(lambda bar: f'<mo form="{next(forms)}" stretchy="false">{BARS[bar[1]]}</mo>', formula)


def _drawing(match: re.Match[str]) -> str:
    """An image that is a file of its own cannot see whether the page is light or dark; one within the page can."""
    drawing = (ROOT / "docs" / "figures" / f"{match[2]}.svg").read_text()
    return f'<div class="figure" role="img" aria-label="{match[1]}">{drawing}</div>'
