"""``lt-cb report``: tables and charts of a folder of runs as Markdown, CSV and one HTML page. Imports no torch."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from lt_cb.errors import ArgumentParser, InputError
from lt_cb.lab.report import rows
from lt_cb.lab.report.collect import collect
from lt_cb.lab.report.figures import figures
from lt_cb.lab.report.finding import finding
from lt_cb.lab.report.page import page, write_figures
from lt_cb.lab.report.posthoc import MEANS, class_means
from lt_cb.lab.report.result import Runs
from lt_cb.lab.report.sections import METRIC_TITLES, Section, sections
from lt_cb.lab.report.tables import cells_of
from lt_cb.runs.folder import write_text
from lt_cb.text import markdown, printable, spreadsheet_safe


def main(args: Sequence[str]) -> int:
    """Run ``lt-cb report`` with the arguments behind ``report``."""
    parser = ArgumentParser("lt-cb report", description="Tables and charts of a folder of runs.")
    parser.add_argument("folder", type=Path, help="folder of runs (runs/digits) or of kept results (results/cifar10)")
    parser.add_argument("--out", type=Path, help="folder of report.md, report.csv and report.html; default: FOLDER")
    metric_help = "of the first table; default: error, or mAP with several labels an image"
    parser.add_argument("--metric", choices=METRIC_TITLES, help=metric_help)
    parser.add_argument("--figures", choices=("svg", "pdf"), help="also write the charts to OUT/figures, for a paper")
    parser.add_argument("--save", type=Path, metavar="RESULTS", help="add the runs to kept results and stop")
    options = parser.parse_args(args)
    if options.save is not None:
        added, total = rows.save(options.folder, options.save)
        print(f"{added} runs added to {options.save}, which now has {total}.")
        return 0
    runs = collect(options.folder)
    metric = options.metric or ("mAP" if runs.task.multi_label else "error")
    cells = cells_of(runs, metric)
    out = options.out or options.folder
    if out.exists() and not out.is_dir():
        raise InputError(f"--out is '{out}', which is a file: give a folder.")
    summary, tables = finding(runs, metric), sections(runs, cells, metric)
    pictures = figures(runs, cells, metric, METRIC_TITLES[metric])
    lines = "\n\n".join(map(markdown, summary))
    write_text(out / "report.md", f"{lines}\n\n{_markdown(tables)}")
    write_text(out / "report.csv", _csv(runs))
    write_text(out / "report.html", page("Report", summary, tables, pictures, runs.columns()))
    if options.figures:
        write_figures(pictures, runs.columns(), out / "figures", options.figures)
    print("\n".join(map(printable, summary)), _markdown(tables[:1]), sep="\n\n")
    print(printable(f"{out / 'report.md'}, {out / 'report.csv'}, {out / 'report.html'}"))
    return 0


def _markdown(tables: list[Section]) -> str:
    parts = []
    for section in tables:
        rows = [list(map(_cell, row, section.header)) for row in section.rows]
        lines = [list(map(markdown, section.header)), ["---"] * len(section.header), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {markdown(section.title)}\n\n{markdown(section.words)}\n\n{table}\n")
    return "\n".join(parts)


def _cell(text: str, column: str) -> str:
    """Return a cell in Markdown: a command as code, a number between asterisks in bold."""
    if column == "command":
        return f"`{printable(text.strip('`')).replace('|', chr(92) + '|')}`"
    bold = re.fullmatch(r"(\*\*)(\d.*?)\*\*(.*)", text)
    return f"**{bold[2]}**{markdown(bold[3])}" if bold else markdown(text)


def _csv(runs: Runs) -> str:
    """Return one line for each run."""
    stream = io.StringIO()
    names = sorted({name for result in runs.results for name in result.metrics})
    writer = csv.writer(stream)
    writer.writerow(["folder", "method", "data", "seed", "subset_seed", "checkpoint", "error", *names, *MEANS])
    for r in runs.results:
        error = r.score("error")
        row = [str(r.folder), r.method, r.data, *r.seed, r.record.tested, "" if error is None else round(error, 4)]
        row += [*[r.metrics.get(name, "") for name in names], *class_means(r.record.scores).values()]
        writer.writerow(map(spreadsheet_safe, row))
    return stream.getvalue()
