"""The HTML page of a report: one file, which loads nothing and runs no script but its own."""

import html
import json
import re
from importlib.metadata import version

import numpy as np

from lt_cb.data.cache import cache_file, read_cache, write_cache
from lt_cb.lab.report.figures import SHAPES, VEGA_LITE, Picture, style_of
from lt_cb.lab.report.sections import Section

# of what a browser is to refuse, should a name or a library ask for it: everything that is not in the file
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
TEXTS = ("data", "unlike the paper", "verdict", "on", "commit", "command", "predictions", "state")  # columns of words
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
.bar { background: var(--paper); padding: .5rem 0; display: flex; flex-wrap: wrap; gap: .3rem .4rem; z-index: 2; }
@media (min-width: 700px) { .bar { position: sticky; top: 0; max-height: 9rem; overflow-y: auto; } }
button, select { font: inherit; font-size: .85rem; color: inherit; background: var(--mild); max-width: 100%;
  border: 1px solid var(--line); border-radius: 4px; padding: .15rem .5rem; text-align: left; }
button { cursor: pointer; } button[aria-pressed=false] { opacity: .4; text-decoration: line-through; }
.picture { width: 100%; } .picture.vega-embed { display: block; padding: 0; } .vega-embed summary { opacity: .35; }"""
SCRIPT = """const shown = JSON.parse(document.getElementById("pictures").textContent,
  (key, value) => key === "legend" ? null : value);  // the buttons are the legend of all
const dark = matchMedia("(prefers-color-scheme: dark)"), state = {hidden: []}, views = [];
function theme(width) {
  const ink = dark.matches ? "#c9d1dc" : "#333a44", line = dark.matches ? "#333b47" : "#dfe3ea";
  const heat = ["#f1f5fa", "#c6dbef", "#6baed6", "#2171b5", "#08306b"];
  const night = ["#1b2029", "#24496f", "#5b9bd5", "#9ccaf2"];
  const axis = {labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line,
    labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelLimit: width < 600 ? 120 : 180};
  return {background: "transparent", font: "system-ui, sans-serif", view: {stroke: null}, axis,
    legend: {disable: true}, style: {name: {fontSize: 12}, count: {fontSize: width < 600 ? 9 : 12}},
    range: {heatmap: dark.matches ? night : heat}};
}
async function draw() {
  views.splice(0).forEach(view => view.finalize());
  const colours = dark.matches ? {ink: "#c9d1dc", paper: "#0b0e12"} : {ink: "#222222", paper: "#ffffff"};
  for (const [name, spec] of Object.entries(shown)) {
    const place = document.getElementById(name);
    const params = spec.params.map(p => ({...p, value: ({...colours, ...state})[p.name] ?? p.value}));
    const made = await vegaEmbed(place, {...spec, params}, {mode: "vega-lite", renderer: "svg", ast: true,
      actions: {export: true, source: false, compiled: false, editor: false}, downloadFileName: name,
      config: theme(place.clientWidth), tooltip: {theme: dark.matches ? "dark" : "light"}});
    views.push(made.view);
  }
  document.body.dataset.drawn = performance.now().toFixed(0);
}
function tell(name, value) {
  state[name] = value;
  for (const view of views) try { view.signal(name, value).runAsync(); } catch { /* has no such choice */ }
}
function sift() {
  for (const table of document.querySelectorAll("table")) {
    const head = [...table.rows[0].cells].map(cell => cell.textContent);
    const column = head.indexOf("method");
    for (const row of table.rows) {
      if (column >= 0) row.hidden = row.rowIndex > 0 && state.hidden.includes(row.cells[column].textContent);
      else [...row.cells].forEach((cell, i) => { cell.hidden = state.hidden.includes(head[i]); });
    }
  }
}
for (const button of document.querySelectorAll("button[value]")) button.onclick = () => {
  const off = state.hidden.includes(button.value);
  button.ariaPressed = off;
  tell("hidden", off ? state.hidden.filter(name => name !== button.value) : [...state.hidden, button.value]);
  sift();
};
for (const select of document.querySelectorAll("select")) select.onchange = () => tell(select.name, select.value);
dark.onchange = draw;
draw();"""


def as_script(content: object) -> str:
    """Return JSON that no text in it can end the script element of, nor open another."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page(
    title: str, finding: str, tables: list[Section], pictures: list[Picture], methods: list[str], columns: list[str]
) -> str:
    """Return the page: the finding, the first table, the pictures, and the other tables.

    Args:
        title: of the page.
        finding: its first paragraph.
        tables: at least one.
        pictures: of the methods.
        methods: in the order of their colours.
        columns: data sets, of which one is chosen.
    """
    confused = [p for p in pictures if p.name == "confusion"]
    matrices = dict.fromkeys(row["method"] for p in confused for row in p.spec["data"]["values"])
    drawn = []
    for picture in pictures:
        choice = _select("confused", "method", list(matrices)) if picture in confused else ""
        drawn.append(
            f"<h2>{html.escape(picture.title)}</h2>\n<p>{html.escape(picture.words)}</p>\n{choice}"
            f'<div class="picture" id="{picture.name}" style="min-height: {picture.spec["height"]}px"></div>'
        )
    made = [_table(section) for section in tables]
    data = _select("dataset", "data", columns) if len(columns) > 1 else ""
    bar = f'<div class="bar" title="Click to hide or show a method">{data}{_legend(methods, pictures)}</div>'
    body = "\n".join([made[0], "<div>", bar, *drawn, "</div>", *made[1:]])
    specs = as_script({picture.name: picture.spec for picture in pictures})
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>lt_cb {title.lower()}</title>
<style>{STYLE}</style></head>
<body><h1>{title}</h1>
<p class="finding">{html.escape(finding)}</p>
{body}
<script type="application/json" id="pictures">{specs}</script>
<script>{_library()}</script>
<script>{SCRIPT}</script>
</body></html>
"""


def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script. It is cached: to build it takes a second or two."""
    kept = cache_file("vega", VEGA_LITE, version("vl-convert-python"))
    cached = read_cache(kept)
    if cached is not None:
        return cached["script"].tobytes().decode()
    import vl_convert  # whose package has the sources of Vega too

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    script = re.sub("</(script)", r"<\\/\1", script, flags=re.IGNORECASE)
    write_cache(kept, "builds the script of the pictures", {"script": np.frombuffer(script.encode(), np.uint8)})
    return script


def _table(section: Section) -> str:
    def line(texts: list[str], tag: str) -> str:
        cells = []
        for name, text in zip(section.header, texts, strict=True):
            inner = re.sub(r"[*]{2}(\d.*?)[*]{2}", r"<b>\1</b>", html.escape(text))
            inner = f"<code>{inner.strip('`')}</code>" if (name, tag) == ("command", "td") else inner
            cells.append(f'<{tag} class="text">{inner}' if name in TEXTS else f"<{tag}>{inner}")
        return f"<tr>{''.join(f'{cell}</{tag}>' for cell in cells)}</tr>"

    body = "\n".join(line(row, "td") for row in section.rows)
    table = f"<table><thead>{line(section.header, 'th')}</thead><tbody>\n{body}</tbody></table>"
    words = f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.words)}</p>"
    return f'{words}\n<div class="wide">{table}</div>'


def _select(name: str, label: str, options: list[str]) -> str:
    inner = "".join(f'<option value="{html.escape(text)}">{html.escape(text)}</option>' for text in options)
    return f'<label>{label} <select name="{name}">{inner}</select></label>\n'


def _legend(methods: list[str], pictures: list[Picture]) -> str:
    """Return a button a method: its colour and shape, to be clicked off and on."""
    drawn = {row["method"] for picture in pictures for row in picture.spec["data"]["values"]}
    return "".join(
        f'<button value="{html.escape(name)}" aria-pressed="true"><span style="color: {colour}">{SHAPES[shape]}</span> '
        f"{html.escape(name)}</button>"
        for name, (colour, shape) in style_of(methods).items()
        if name in drawn
    )
