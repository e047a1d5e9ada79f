"""Charts of a report as files for a paper."""

import re
from itertools import product
from pathlib import Path
from typing import Any

from lt_cb.lab.report.extra import vl_convert
from lt_cb.lab.report.figures import Picture
from lt_cb.lab.report.page import VEGA_LITE, theme

INCH = 108  # pixels, so that a font of 12 px is 8 pt
COLUMN, PAGE = 3.25, 6.75  # widths in a paper, in inches
MAX_HEIGHT = 8.5 * INCH
# the first font comes with vl-convert, so that files are the same on all machines; the others are as wide
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


def write(pictures: list[Picture], columns: list[str], folder: Path, kind: str) -> None:
    """Write charts with 8 pt fonts on white, 3.25 or 6.75 inches wide; a file for each data set of ``columns``.

    The kind is ``pdf``, with the font embedded, or ``svg``, with editable text in Arial or a font of the same width.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for picture, data in product(pictures, columns):
        drawn = [row["method"] for row in picture.spec["data"]["values"] if row["dataset"] == data]
        for method in dict.fromkeys(drawn if picture.name == "confusion" else [""] * bool(drawn)):
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
