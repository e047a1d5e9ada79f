"""Charts of a report on an HTML page that loads nothing else, and as files for a paper."""

import functools
import html
import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from lt_cb.lab.report.document import document, heading, table
from lt_cb.lab.report.extra import vl_convert
from lt_cb.lab.report.figures import Picture
from lt_cb.lab.report.sections import Section

INCH = 108  # pixels, so that a font of 12 px is 8 pt
COLUMN, PAGE = 3.25, 6.75  # widths in a paper, in inches
MAX_HEIGHT = 8.5 * INCH
# the first font comes with vl-convert, so that files are the same on all machines; the others are as wide
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
VEGA_LITE = "6.4"
SCRIPT = """const {specs, config} = JSON.parse(document.getElementById("pictures").textContent);
for (const [id, spec] of Object.entries(specs))
  vegaEmbed(document.getElementById(id), spec, {mode: "vega-lite", renderer: "svg", ast: true, config,
    actions: {export: true, source: false, compiled: false, editor: false}, downloadFileName: id});"""


def theme(ink: str = "currentColor", **more: Any) -> dict[str, Any]:  # noqa: ANN401 - Vega-Lite
    """Return the Vega-Lite configuration of a chart: fonts of 12 px, lines and text in one colour."""
    text = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": ink, "titleColor": ink}
    lines = {"gridColor": ink, "domainColor": ink, "tickColor": ink}
    faint = {"gridOpacity": 0.15, "domainOpacity": 0.15, "tickOpacity": 0.15}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": {**text, **lines, **faint, "labelLimit": 140},
        "axisQuantitative": {"tickCount": 6},
        "legend": {**text, "labelLimit": 400, "layout": {"bottom": {"anchor": "middle"}}},
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": ink},
        "range": {"heatmap": ["#f1f5fa", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]},
        **more,
    }


def page(
    title: str,
    finding: Sequence[str],
    tables: list[Section],
    pictures: list[Picture],
    columns: list[str],
    before: str = "",
    after: str = "",
) -> str:
    """Return the page: the lines of the finding, charts of a chosen data set, and tables.

    ``before`` is HTML below the finding, ``after`` HTML at the end.
    """
    drawn, chooser = [_select("dataset", columns)], False
    for picture in pictures:
        choice = _select("method", picture.methods) if picture.methods and not chooser else ""
        chooser = chooser or bool(picture.methods)
        drawn.append(
            f'{heading(picture.title, picture.words)}\n{choice}<div class="picture" id="{picture.name}"></div>'
        )
    shown = [
        table(section.title, section.words, section.header, section.rows, folded=section.folded) for section in tables
    ]
    body = "\n".join([before, *drawn, *shown, after])
    content = json.dumps({"specs": {picture.name: picture.spec for picture in pictures}, "config": theme()})
    content = content.replace("<", "\\u003c")  # so that no name ends the script element
    scripts = f"""<script type="application/json" id="pictures">{content}</script>
<script>{_library()}</script>
<script>{SCRIPT}</script>"""
    return document(title, finding, f"{body}\n{scripts}")


@functools.cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return re.sub("</(script)", r"<\\/\1", script, flags=re.IGNORECASE)


def _select(column: str, options: Sequence[str]) -> str:
    """Return a list that sets the parameter ``column`` of all charts, hidden if it has one option."""
    inner = "".join(f'<option value="{html.escape(text)}">{html.escape(text)}</option>' for text in options)
    hidden = " hidden" if len(options) < 2 else ""
    return f'<label{hidden}>{column} <select id="choose-{column}">{inner}</select></label>\n'


def write_figures(pictures: list[Picture], columns: list[str], folder: Path, kind: str) -> None:
    """Write charts with 8 pt fonts on white, 3.25 or 6.75 inches wide; a file for each data set of ``columns``.

    The kind is ``pdf``, with the font embedded, or ``svg``, with editable text in Arial or a font of the same width.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for picture, data in product(pictures, columns):
        drawn = [row["method"] for row in picture.spec["data"]["values"] if row["dataset"] == data]
        for method in [name for name in picture.methods if name in drawn] or [""] * bool(drawn):
            parts = [picture.name, *([data] if len(columns) > 1 else []), method]
            stem = "_".join(re.sub(r"[^\w.-]+", "_", part).strip("_") for part in parts if part)
            spec = _for_paper(picture, {"dataset": data, "method": method})
            svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
            if kind == "svg":
                (folder / f"{stem}.svg").write_text(_sized(svg, 1, "in"))
            else:
                (folder / f"{stem}.pdf").write_bytes(vl_convert.svg_to_pdf(_sized(svg, 72)))


def _sized(svg: str, inch: float, unit: str = "") -> str:
    """Return a drawing with its size in a unit; ``inch`` is the number of units in an inch."""

    def size(match: re.Match[str]) -> str:
        width, height = (float(pixels) * inch / INCH for pixels in match.groups())
        return f' width="{width:.4g}{unit}" height="{height:.4g}{unit}"'

    return re.sub(r' width="([\d.]+)" height="([\d.]+)"', size, svg, count=1)


def _for_paper(picture: Picture, chosen: dict[str, str]) -> dict[str, Any]:
    """Return the specification of one data set, and one method of a confusion matrix."""
    spec, width = picture.spec, (PAGE if picture.wide else COLUMN) * INCH
    params = [{"name": p["name"], "value": chosen[p["name"]]} if p["name"] in chosen else p for p in spec["params"]]
    config = theme("#333a44", background="white", font=FONT, point={"strokeWidth": 1.5})
    # from the right, as there is more room below the names of an axis than below the chart
    config["legend"] |= {"labelLimit": width - 30, "rowPadding": 3, "layout": {"bottom": {"anchor": "end"}}}
    size = {"width": width, "height": min(0.9 * spec["height"], MAX_HEIGHT)}
    padding = {"top": 12, "left": 3, "right": 3, "bottom": 3}  # a name stands above the first row
    return {**spec, **size, "params": params, "padding": padding, "config": config}
