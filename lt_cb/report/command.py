"""``lt-cb report``: what a folder of runs comes to, as Markdown, CSV and one HTML page. Imports no torch."""

import csv
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from lt_cb.errors import ArgumentParser, InputError
from lt_cb.report import rows
from lt_cb.report.collect import Runs, collect
from lt_cb.report.figures import figures
from lt_cb.report.posthoc import MEANS, class_means
from lt_cb.report.sections import METRICS, Section, sections
from lt_cb.report.tables import cells_of

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; }
td:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; } th { text-align: left; }
svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; }"""


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb report``.

    Args:
        args: the words behind ``report``.

    Raises:
        InputError: if there are no runs.
    """
    parser = ArgumentParser("lt-cb report", description="Tables and pictures of a folder of runs.")
    parser.add_argument("folder", type=Path, help="of runs, as runs/digits, or of kept results, as results/cifar10")
    parser.add_argument("--out", type=Path, help="folder of report.md, report.csv and report.html; default the runs'")
    parser.add_argument("--metric", choices=METRICS, default="error", help="of the first table; default error")
    parser.add_argument("--save", type=Path, metavar="RESULTS", help="add the runs to kept results, as results/cifar10")
    options = parser.parse_args(args)
    if options.save is not None:
        added, total = rows.save(options.folder, options.save)
        print(f"{added} runs added to {options.save}, which has {total}.")
        return 0
    runs = collect(options.folder)
    cells = cells_of(runs, options.metric)
    out = options.out or options.folder
    if out.exists() and not out.is_dir():
        raise InputError(f"--out is '{out}', which is a file: name a folder.")
    tables = sections(runs, cells, options.metric)
    web = _html(tables, figures(runs, cells, METRICS[options.metric]))
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(_markdown(tables))
    (out / "report.csv").write_text(_csv(runs))
    (out / "report.html").write_text(web)
    print(_markdown(tables[:1]))
    print(f"{out / 'report.md'}, {out / 'report.csv'}, {out / 'report.html'}")
    return 0


def _markdown(tables: list[Section]) -> str:
    parts = []
    for section in tables:
        lines = [section.header, ["---"] * len(section.header), *section.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {section.title}\n\n{section.words}\n\n{table}\n")
    return "\n".join(parts)


def _csv(runs: Runs) -> str:
    """One line a run."""
    stream = io.StringIO()
    names = sorted({name for result in runs.results for name in result.metrics})
    writer = csv.writer(stream)
    writer.writerow(["folder", "method", "data", "seed", "subset_seed", "checkpoint", "error", *names, *MEANS])
    for r in runs.results:
        row = [r.folder, r.method, r.data, *r.seed, r.checkpoint, round(r.score("error") or 0.0, 4)]
        writer.writerow([*row, *[r.metrics.get(name, "") for name in names], *class_means(r.per_class).values()])
    return stream.getvalue()


def _html(tables: list[Section], pictures: list[tuple[str, str]]) -> str:
    def cell(text: str, tag: str) -> str:
        inner = re.sub(r"[*]{2}(.*?)[*]{2}", r"<b>\1</b>", html.escape(text))
        return f"<{tag}>{inner}</{tag}>"

    parts = []
    for section in tables:
        head = "".join(cell(text, "th") for text in section.header)
        body = "\n".join("<tr>" + "".join(cell(text, "td") for text in row) + "</tr>" for row in section.rows)
        table = f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'
        parts.append(f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.words)}</p>\n{table}")
    drawn = [f"<h2>{html.escape(title)}</h2>\n{svg}" for title, svg in pictures]
    body = "\n".join([parts[0], *drawn, *parts[1:]])
    head = f'<meta charset="utf-8"><title>lt_cb report</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>Report</h1>\n{body}\n</body></html>\n'
