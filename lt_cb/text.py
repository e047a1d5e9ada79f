"""Names from data, which may hold any character, made safe to show. Imports no torch."""

import html
import re

# control characters, line ends, characters that reverse text, and bytes of file names that are not UTF-8
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MARKUP = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")


def printable(text: str) -> str:
    r"""Return a text on one line, with escapes such as ``\x1b`` for characters that a terminal would obey."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    """Return Markdown that shows a text as it is, on one line."""
    return html.escape(MARKUP.sub(r"\\\g<0>", printable(text)), quote=False)


def spreadsheet_safe(value: object) -> object:
    """Return a value of CSV; a text that a spreadsheet would take for a formula gets a quote before it."""
    if isinstance(value, str) and re.match(r"[=@\t\r]|[+-](?!\d+(\.\d+)?$)", value):
        return f"'{value}"
    return value
