"""The frame of an HTML page in one file, which loads nothing, is light or dark, and fits a phone."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence

from PIL import Image

# the browser refuses everything outside the file, should a name or a library ask for it
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
# colours of the system, light or dark: Canvas is the background, CanvasText the text
STYLE = """:root { color-scheme: light dark; --mild: color-mix(in srgb, CanvasText 6%, Canvas); }
body { font: 16px/1.55 system-ui, sans-serif; color: CanvasText; background: Canvas; max-width: 72rem;
  margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem; } p { max-width: 60rem; }
summary h2 { display: inline; } summary { margin-top: 1.6rem; cursor: pointer; }
h2 + p, details > p { margin: .4rem 0; font-size: .9rem; opacity: .75; }
.finding { line-height: 1.75; background: var(--mild); border-left: 4px solid #0072B2; padding: .8rem 1rem; }
.wide { overflow-x: auto; overflow-wrap: normal; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid color-mix(in srgb, CanvasText 15%, Canvas);
  text-align: right; font-variant-numeric: tabular-nums; min-width: 4.5rem; vertical-align: top; }
td { white-space: nowrap; } .text { text-align: left; white-space: normal; min-width: 8rem; }
td:first-child, th:first-child { position: sticky; left: 0; background: Canvas; max-width: 24rem; min-width: 9rem;
  text-align: left; white-space: normal; }
td:has(code) { min-width: 22rem; } tr:hover > td { background: var(--mild); } .picture { width: 100%; }
tr:has(+ .below) > td { border-bottom: 0; } .below > td { position: static; max-width: none; }
.below > td > * { position: sticky; left: .35rem; max-width: calc(100vw - 2.7rem); }
@media (max-width: 40rem) { th, td { padding: .25rem .35rem; min-width: 3.2rem; }
  td:first-child, th:first-child { min-width: 6rem; } }"""

TEXT_COLUMNS = (
    *("data", "unlike the paper", "minus", "classes", "machines"),
    *("on", "commit", "command", "predictions", "state"),
)


def document(title: str, finding: Sequence[str], body: str, style: str = "") -> str:
    """Return a page of a title, the lines of its finding, and HTML below them."""
    name, lines = html.escape(title), "<br>".join(map(html.escape, finding))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>lt_cb {name[:1].lower()}{name[1:]}</title>
<style>{STYLE}{style}</style></head>
<body><h1>{name}</h1>
<p class="finding">{lines}</p>
{body}
</body></html>
"""


def data_uri(image: Image.Image, kind: str) -> str:
    """Return an image as a source for ``<img>``; ``kind`` is jpeg or webp."""
    stream = io.BytesIO()
    image.save(stream, kind, quality=75)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def heading(title: str, words: str) -> str:
    """Return the heading of a section and a sentence about it."""
    return f"<h2>{html.escape(title)}</h2>\n<p>{html.escape(words)}</p>"


def table(
    title: str,
    words: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    below: Mapping[int, str] | None = None,
    folded: bool = False,
) -> str:
    """Return a section with a table of text; numbers between two pairs of asterisks are bold.

    ``below`` is HTML that stands below a row, by its index. A folded table is opened by a click on its title.
    """

    def line(texts: Sequence[str], tag: str) -> str:
        cells = []
        for name, text in zip(header, texts, strict=True):
            inner = re.sub(r"[*]{2}(\d.*?)[*]{2}", r"<b>\1</b>", html.escape(text))
            inner = f"<code>{inner.strip('`')}</code>" if (name, tag) == ("command", "td") else inner
            cells.append(f'<{tag} class="text">{inner}</{tag}>' if name in TEXT_COLUMNS else f"<{tag}>{inner}</{tag}>")
        return f"<tr>{''.join(cells)}</tr>"

    lines = [line(row, "td") for row in rows]
    for i, inner in (below or {}).items():
        lines[i] += f'\n<tr class="below"><td colspan="{len(header)}">{inner}</td></tr>'
    body = "\n".join(lines)
    inner = f"<table><thead>{line(header, 'th')}</thead><tbody>\n{body}</tbody></table>"
    top, bottom = heading(title, words).split("\n", 1)
    if folded:
        top, inner = f"<details><summary>{top}</summary>", f"{inner}</div></details>"
    return f'{top}\n{bottom}\n<div class="wide">{inner}' + "</div>" * (not folded)
