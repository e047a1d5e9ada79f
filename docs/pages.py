"""Puts the reports of kept results into the pages that name them: uv run python docs/pages.py.

A page has the report between ``<!-- lt-cb report results/NAME ... -->`` and ``<!-- end -->``.
"""

import re
import shlex
import tempfile
from pathlib import Path

from lt_cb.report import main

PLACE = re.compile(r"(<!-- lt-cb report (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a page with its reports as the kept rows give them, from the root of the repository."""

    def made(match: re.Match[str]) -> str:
        with tempfile.TemporaryDirectory() as out:
            main([*shlex.split(match[2]), "--out", out])
            return f"{match[1]}\n{(Path(out) / 'report.md').read_text()}\n{match[4]}"

    return PLACE.sub(made, text)


if __name__ == "__main__":
    for page in Path("docs").glob("*.md"):
        page.write_text(filled(page.read_text()))
