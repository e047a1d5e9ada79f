"""Makes the pages of kept results again: uv run python docs/pages.py.

A page has a report between ``<!-- lt-cb report results/NAME ... -->`` and ``<!-- end -->``; ``report.html`` is one.
"""

import re
import shlex
import tempfile
from pathlib import Path

from lt_cb.report import main

PLACE = re.compile(r"(<!-- lt-cb report (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def report(file: str, args: list[str]) -> str:
    """Return a file of the report, from the root of the repository."""
    with tempfile.TemporaryDirectory() as out:
        main([*args, "--out", out])
        return (Path(out) / file).read_text()


def filled(text: str) -> str:
    """Return a page with its reports as the kept rows give them, from the root of the repository."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{report('report.md', shlex.split(match[2]))}\n{match[4]}"

    return PLACE.sub(made, text)


def campaign() -> str:
    """Return the page of the runs that test the paper's claim."""
    return report("report.html", ["results/cifar10_curve"])


if __name__ == "__main__":
    for page in Path("docs").glob("*.md"):
        page.write_text(filled(page.read_text()))
    Path("docs/report.html").write_text(campaign())
