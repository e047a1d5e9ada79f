"""Pictures of a report for a paper, as files."""

import re
from pathlib import Path
from typing import Any

from lt_cb.report.figures import VEGA_LITE, Picture

COLUMN, PAGE = 3.25, 6.75  # widths in a paper, inches
PIXELS = {"svg": 96, "pdf": 72}  # an inch
BARS = ["#f1f5fa", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]  # of a confusion matrix on white


def write(pictures: list[Picture], columns: list[str], folder: Path, kind: str) -> None:
    """Write pictures for a paper: 8 pt type on white, 3.25 or 6.75 inches wide.

    Args:
        pictures: of `figures`.
        columns: data sets, each with files of its own.
        folder: where to.
        kind: ``svg``, whose text stays text in Arial or the like, or ``pdf``, which embeds its font.
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
                width = PAGE if picture.wide else COLUMN
                spec = _for_paper(picture.spec, shown, data, method, width, PIXELS[kind])
                if kind == "svg":
                    drawn = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
                    (folder / f"{stem}.svg").write_text(
                        re.sub(r'(<svg[^>]*? width=")[^"]*', rf"\g<1>{width}in", drawn, count=1)
                    )
                else:
                    drawn_pdf = vl_convert.vegalite_to_pdf(spec, vl_version=VEGA_LITE)
                    (folder / f"{stem}.pdf").write_bytes(drawn_pdf)


def _for_paper(
    spec: dict[str, Any], values: list[dict[str, Any]], data: str, method: str, width: float, pixels: int
) -> dict[str, Any]:
    given = {"dataset": data, "confused": method}
    params = [{**param, "value": given.get(param["name"], param["value"])} for param in spec["params"]]
    height = min(spec["height"], 0.75 * width * pixels)
    sizes = {"width": width * pixels, "height": height, "autosize": {"type": "fit", "contains": "padding"}}
    return {
        **spec,
        **sizes,
        "padding": 2,
        "params": params,
        "data": {"values": values},
        "config": _paper_config(pixels / 72),
    }


def _paper_config(point: float) -> dict[str, Any]:
    """Return type of 8 pt on white; ``point`` is in pixels."""
    return {
        "background": "white",
        "font": "Arial, Liberation Sans, sans-serif",
        **{part: {"labelFontSize": 8 * point, "titleFontSize": 8 * point} for part in ("axis", "legend")},
        "text": {"fontSize": 7 * point},
        "range": {"heatmap": BARS},
    }
