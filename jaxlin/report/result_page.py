"""The page of any result: what a notebook shows of it, in a file that requests nothing."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from jaxlin.common.files import write_atomically
from jaxlin.common.printable import printable
from jaxlin.report.html import ReportError, check_writable
from jaxlin.results import Result

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
main > div { overflow-x: auto; }
th { font-weight: 500; text-align: left; }
th, td { padding: .15rem .5rem; }
p bdi, td bdi { white-space: pre-wrap !important; }
td bdi { display: inline-block; max-width: 36rem; }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def result_page(results: Sequence[Result], name: str) -> str:
    """A page with what a notebook shows of each of `results`. It has no script, and its policy lets none run."""
    title = f"{type(results[0]).__name__}, {name}" if results else name
    body = "\n".join(f"<div>{each._repr_html_()}</div>" for each in results)
    return PAGE.substitute(title=escape(printable(title)), body=body)


def write_result(results: Sequence[Result], path: Path, name: str) -> None:
    """Write the page of `results` to `path`, atomically.

    Raises:
        ReportError: it cannot be written there.
    """
    check_writable(path)
    text = result_page(results, name)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"), ReportError)
