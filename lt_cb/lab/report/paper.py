"""Pictures of a report for a paper, as files."""

import re
from pathlib import Path
from typing import Any

from lt_cb.lab.report.figures import VEGA_LITE, Picture

INCH = 72  # units: a point each, so that type of size 8 is 8 pt
COLUMN, PAGE = 3.25, 6.75  # widths in a paper, inches
HEIGHT = 8.5 * INCH  # at most
BARS = ["#f1f5fa", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]  # of a confusion matrix on white
# the first comes with vl-convert, so that a file is the same wherever it is made; the letters of the others are as wide
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


def write(pictures: list[Picture], columns: list[str], folder: Path, kind: str) -> None:
    """Write pictures for a paper: 8 pt type on white, 3.25 or 6.75 inches wide.

    Args:
        pictures: of `figures`.
        columns: data sets, each with files of its own.
        folder: where to.
        kind: ``pdf``, which embeds its font, or ``svg``, whose text stays text, to be found and edited: in Arial or a
            font with letters as wide, one of which nearly every system has.
    """
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        values = picture.spec["data"]["values"]
        for data in columns:
            own = [row for row in values if row["dataset"] == data]
            methods = list(dict.fromkeys(row["method"] for row in own)) if picture.name == "confusion" else [""]
            for method in methods:
                shown = [row for row in own if not method or row["method"] == method]
                if not shown:
                    continue
                parts = [picture.name, *([data] if len(columns) > 1 else []), method]
                stem = "_".join(re.sub(r"[^\w.-]+", "_", part).strip("_") for part in parts if part)
                spec = _for_paper(picture.spec, shown, data, method, PAGE if picture.wide else COLUMN)
                if kind == "svg":
                    drawn = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
                    sized = re.sub(r' width="([\d.]+)" height="([\d.]+)"', _in_inches, drawn, count=1)
                    (folder / f"{stem}.svg").write_text(sized)
                else:
                    (folder / f"{stem}.pdf").write_bytes(vl_convert.vegalite_to_pdf(spec, vl_version=VEGA_LITE))


def _in_inches(size: re.Match[str]) -> str:
    width, height = (float(units) / INCH for units in size.groups())
    return f' width="{width:.4g}in" height="{height:.4g}in"'


def _for_paper(
    spec: dict[str, Any], values: list[dict[str, Any]], data: str, method: str, width: float
) -> dict[str, Any]:
    given = {"dataset": data, "confused": method}
    return {
        **spec,
        "width": width * INCH,
        "height": min(0.6 * spec["height"], HEIGHT),  # a page has 12 px type, here it is 8 pt
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": {"top": 8, "left": 2, "right": 2, "bottom": 2},  # a name stands above the first row
        "params": [{**param, "value": given.get(param["name"], param["value"])} for param in spec["params"]],
        "data": {"values": values},
        "layer": [_finer(layer) for layer in spec["layer"]],
        "config": _config(width),
    }


def _finer(layer: dict[str, Any]) -> dict[str, Any]:
    """Return a layer with marks as small beside 8 pt type as they are beside that of a page."""
    mark = layer["mark"] if isinstance(layer["mark"], dict) else {"type": layer["mark"]}
    parts = {"size": 0.35, "strokeWidth": 0.5, "dy": 0.58, "yOffset": 0.6}
    return {**layer, "mark": {**mark, **{name: mark[name] * part for name, part in parts.items() if name in mark}}}


def _config(width: float) -> dict[str, Any]:
    text = {"labelFontSize": 8, "titleFontSize": 8, "titleFontWeight": "normal"}
    legend = {"symbolSize": 25, "rowPadding": 2, "offset": 6, "labelLimit": width * INCH - 20}
    return {
        "background": "white",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {**text, "gridColor": "#e4e4e4", "labelLimit": 90},
        # from the right, as there is more room under the names of an axis than under its picture
        "legend": {**text, **legend, "layout": {"bottom": {"anchor": "end"}}},
        "style": {"name": {"fontSize": 8}, "count": {"fontSize": 7}},
        "point": {"strokeWidth": 1},
        "range": {"heatmap": BARS},
    }
