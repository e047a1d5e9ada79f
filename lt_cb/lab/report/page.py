"""HTML page of a report: one file that loads nothing else."""

import functools
import html
import json
import re
from typing import Any

from lt_cb.lab.report.extra import vl_convert
from lt_cb.lab.report.figures import Picture
from lt_cb.lab.report.sections import Section

VEGA_LITE = "6.4"
# the browser refuses everything outside the file, should a name or a library ask for it
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
TEXT_COLUMNS = ("data", "unlike the paper", "verdict", "on", "commit", "command", "predictions", "state")
STYLE = """:root { color-scheme: light dark; --ink: #1c2128; --paper: #fff; --soft: #667; --line: #dde;
  --mild: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ee; --paper: #14171c; --soft: #9aa5b4; --line: #333b47; --mild: #1d222a; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem; }
p { max-width: 60rem; margin: .4rem 0; } h2 + p { color: var(--soft); font-size: .9rem; }
.finding { background: var(--mild); border-left: 4px solid #0072B2; padding: .8rem 1rem; border-radius: 4px; }
.wide { overflow-x: auto; margin: .8rem 0; overflow-wrap: normal; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  text-align: right; font-variant-numeric: tabular-nums; min-width: 4.5rem; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { white-space: nowrap; } .text { text-align: left; white-space: normal; min-width: 8rem; } code { font-size: .85em; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper); max-width: 24rem;
  min-width: 9rem; text-align: left; white-space: normal; }
td:has(code) { min-width: 22rem; } tbody tr:hover > td { background: var(--mild); }
select { font: inherit; font-size: .85rem; color: inherit; background: var(--mild); max-width: 100%;
  border: 1px solid var(--line); border-radius: 4px; padding: .15rem .5rem; }
.picture { width: 100%; } .picture.vega-embed { display: block; padding: 0; } .vega-embed summary { opacity: .35; }"""
SCRIPT = """const {specs, themes} = JSON.parse(document.getElementById("pictures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)"), selects = document.querySelectorAll("select"), views = [];
async function draw() {
  views.splice(0).forEach(view => view.finalize());
  const name = dark.matches ? "dark" : "light";
  for (const [id, spec] of Object.entries(specs)) {
    const made = await vegaEmbed(document.getElementById(id), spec, {mode: "vega-lite", renderer: "svg", ast: true,
      actions: {export: true, source: false, compiled: false, editor: false}, downloadFileName: id,
      config: themes[name], tooltip: {theme: name}});
    views.push(made.view);
  }
  selects.forEach(choose);
}
function choose(select) {
  for (const view of views) try { view.signal(select.name, select.value).runAsync(); } catch { /* no such choice */ }
}
selects.forEach(select => select.onchange = () => choose(select));
dark.onchange = draw;
draw();"""


def theme(dark: bool = False, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - Vega-Lite
    """Return the Vega-Lite configuration of a chart: fonts of 12 px, and colours for a light or dark page."""
    ink, line, paper = ("#c9d1dc", "#333b47", "#0b0e12") if dark else ("#333a44", "#dfe3ea", "#ffffff")
    heat = (
        ["#1b2029", "#24496f", "#5b9bd5", "#9ccaf2"]
        if dark
        else ["#f1f5fa", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
    )
    text = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": ink, "titleColor": ink}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": {**text, "gridColor": line, "domainColor": line, "tickColor": line, "labelLimit": 140},
        "legend": {**text, "labelLimit": 400},
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": ink},
        "range": {"heatmap": heat},
        "params": [{"name": "ink", "value": ink}, {"name": "paper", "value": paper}],
        **more,
    }


def page(title: str, finding: str, tables: list[Section], pictures: list[Picture], columns: list[str]) -> str:
    """Return the page: the finding, the first table, the charts, and the other tables.

    Args:
        title: of the page.
        finding: its first paragraph.
        tables: at least one.
        pictures: charts.
        columns: data sets to choose from.
    """
    drawn = [_select("dataset", "data", columns)] if len(columns) > 1 else []
    for picture in pictures:
        methods = dict.fromkeys(row["method"] for row in picture.spec["data"]["values"])
        choice = _select("confused", "method", list(methods)) if picture.name == "confusion" else ""
        place = f'<div class="picture" id="{picture.name}" style="min-height: {picture.spec["height"]}px"></div>'
        drawn.append(f"{_heading(picture)}\n{choice}{place}")
    body = "\n".join([_table(tables[0]), *drawn, *map(_table, tables[1:])])
    themes = {"light": theme(), "dark": theme(dark=True)}
    content = as_script({"specs": {picture.name: picture.spec for picture in pictures}, "themes": themes})
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>lt_cb {title.lower()}</title>
<style>{STYLE}</style></head>
<body><h1>{title}</h1>
<p class="finding">{html.escape(finding)}</p>
{body}
<script type="application/json" id="pictures">{content}</script>
<script>{_library()}</script>
<script>{SCRIPT}</script>
</body></html>
"""


def as_script(content: object) -> str:
    """Return JSON for a script element, which no text in it can end."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@functools.cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return re.sub("</(script)", r"<\\/\1", script, flags=re.IGNORECASE)


def _heading(part: Section | Picture) -> str:
    return f"<h2>{html.escape(part.title)}</h2>\n<p>{html.escape(part.words)}</p>"


def _table(section: Section) -> str:
    def line(texts: list[str], tag: str) -> str:
        cells = []
        for name, text in zip(section.header, texts, strict=True):
            inner = re.sub(r"[*]{2}(\d.*?)[*]{2}", r"<b>\1</b>", html.escape(text))
            inner = f"<code>{inner.strip('`')}</code>" if (name, tag) == ("command", "td") else inner
            cells.append(f'<{tag} class="text">{inner}</{tag}>' if name in TEXT_COLUMNS else f"<{tag}>{inner}</{tag}>")
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(line(row, "td") for row in section.rows)
    table = f"<table><thead>{line(section.header, 'th')}</thead><tbody>\n{body}</tbody></table>"
    return f'{_heading(section)}\n<div class="wide">{table}</div>'


def _select(name: str, label: str, options: list[str]) -> str:
    inner = "".join(f'<option value="{html.escape(text)}">{html.escape(text)}</option>' for text in options)
    return f'<label>{label} <select name="{name}">{inner}</select></label>\n'
