"""``lt-cb report``: what a folder of runs comes to, as Markdown, CSV and one HTML page. Imports no torch."""

import argparse
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from lt_cb.report.collect import Runs, collect
from lt_cb.report.figures import figures
from lt_cb.report.tables import Cell, error_cells, paired_differences

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; }
td:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; } th { text-align: left; }
svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; }"""

Table = tuple[list[str], list[list[str]]]


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb report``.

    Args:
        args: the words behind ``report``.

    Raises:
        InputError: (a ValueError) if there are no runs.
    """
    parser = argparse.ArgumentParser("lt-cb report", description="Tables and pictures of a folder of runs.")
    parser.add_argument("folder", type=Path, help="of runs, as runs/digits")
    parser.add_argument("--out", type=Path, help="folder of report.md, report.csv and report.html; default the runs'")
    options = parser.parse_args(args)
    runs = collect(options.folder)
    cells = error_cells(runs)
    out = options.out or options.folder
    out.mkdir(parents=True, exist_ok=True)
    sections = _sections(runs, cells)
    (out / "report.md").write_text(_markdown(sections))
    (out / "report.csv").write_text(_csv(runs))
    (out / "report.html").write_text(_html(sections, figures(runs, cells)))
    print(_markdown(sections[:1]))
    print(f"{out / 'report.md'}, {out / 'report.csv'}, {out / 'report.html'}")
    return 0


def _sections(runs: Runs, cells: dict[tuple[str, str], Cell]) -> list[tuple[str, str, Table]]:
    """Return title, words and table of each section."""
    columns = runs.columns()
    seeds = sorted({len(cell.errors) for cell in cells.values()})
    checkpoints = sorted({result.checkpoint for result in runs.results})
    words = (
        f"Top-1 error on the test images in percent: mean ± standard deviation over seeds ({_range(seeds)} a cell), "
        f"of the checkpoint {', '.join(checkpoints)}. Bold: the lowest mean of a column. –: no finished run."
    )
    rows = []
    for method in runs.methods():
        shown = [cells.get((method, data)) for data in columns]
        rows.append([method, *["–" if c is None else f"**{c}**" if c.best else str(c) for c in shown]])
    sections = [("Error", words, (["method", *columns], rows))]

    papers = [cell for cell in cells.values() if cell.paper is not None]
    if papers:
        rows = []
        for cell in papers:
            agrees = {None: "one seed", True: "yes", False: "no"}[cell.agrees]
            difference = cell.mean - (cell.paper or 0.0)
            rows.append([cell.method, cell.data, str(cell), f"{cell.paper:.2f}", f"{difference:+.2f}", agrees])
        words = (
            "Table 2 of Cui et al. 2019 (one run a figure), and whether it is within two standard errors of our mean."
        )
        table = (["method", "data", "ours", "paper", "difference", "within two standard errors"], rows)
        sections.append(("Beside the paper", words, table))

    differences = paired_differences(runs)
    if differences:
        rows = [
            [d.method, d.data, f"{d.mean:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}", str(d.seeds)] for d in differences
        ]
        words = (
            f"How much lower the error is than that of {differences[0].baseline}, in points, on the same seeds: mean "
            "and 95 % bootstrap interval over seeds. With few seeds the interval is too narrow."
        )
        sections.append(("Differences", words, (["method", "data", "lower by", "interval", "seeds"], rows)))

    names = [
        n for n in ("balanced_acc", "acc/many", "acc/medium", "acc/few") if any(n in r.metrics for r in runs.results)
    ]
    rows = []
    for (method, data), results in sorted(runs.cells().items(), key=lambda item: columns.index(item[0][1])):
        means = [_percent([r.metrics[n] for r in results if n in r.metrics]) for n in names]
        rows.append([method, data, *means, str(len(results))])
    words = "Means over seeds in percent: over classes, and over those of many, medium and few training images."
    sections.append(("Accuracy by shot group", words, (["method", "data", *names, "seeds"], rows)))
    if runs.missing:
        rows = [[str(folder), state] for folder, state in runs.missing]
        sections.append(("Missing runs", "Begun, but without a result.", (["folder", "state"], rows)))
    return sections


def _range(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _percent(values: list[float]) -> str:
    return f"{100 * sum(values) / len(values):.2f}" if values else "–"


def _markdown(sections: list[tuple[str, str, Table]]) -> str:
    parts = []
    for title, words, (header, rows) in sections:
        lines = [header, ["---"] * len(header), *rows]
        parts.append(f"## {title}\n\n{words}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def _csv(runs: Runs) -> str:
    """One line a run."""
    stream = io.StringIO()
    names = sorted({name for result in runs.results for name in result.metrics})
    writer = csv.writer(stream)
    writer.writerow(["folder", "method", "data", "seed", "subset_seed", "checkpoint", "error", *names])
    for r in runs.results:
        metrics = [r.metrics.get(name, "") for name in names]
        writer.writerow([r.folder, r.method, r.data, *r.seed, r.checkpoint, round(r.error(), 4), *metrics])
    return stream.getvalue()


def _html(sections: list[tuple[str, str, Table]], pictures: list[tuple[str, str]]) -> str:
    def cell(text: str, tag: str) -> str:
        bold = text.startswith("**")
        inner = html.escape(text.strip("*"))
        return f"<{tag}>{f'<b>{inner}</b>' if bold else inner}</{tag}>"

    parts = []
    for title, words, (header, rows) in sections:
        head = "".join(cell(text, "th") for text in header)
        body = "\n".join("<tr>" + "".join(cell(text, "td") for text in row) + "</tr>" for row in rows)
        table = f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'
        parts.append(f"<h2>{html.escape(title)}</h2>\n<p>{html.escape(words)}</p>\n{table}")
    drawn = [f"<h2>{html.escape(title)}</h2>\n{svg}" for title, svg in pictures]
    body = "\n".join([parts[0], *drawn, *parts[1:]])
    head = f'<meta charset="utf-8"><title>lt_cb report</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>Report</h1>\n{body}\n</body></html>\n'
