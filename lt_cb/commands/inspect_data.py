"""``lt-cb inspect``: a look at all images, class counts, effective numbers and class weights, before training."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_cb.commands.cli import CommandLine, command
from lt_cb.commands.inspect_files import facts, findings
from lt_cb.commands.inspect_page import inspect_page
from lt_cb.commands.messages import causes, input_error
from lt_cb.data import FileSource, LongTailedDataModule
from lt_cb.data.sources.checks import look_at
from lt_cb.errors import DataError, InputError
from lt_cb.longtail.subset import Labels
from lt_cb.losses import EffectiveNumber, effective_number, suggest_beta
from lt_cb.runs.folder import write_text
from lt_cb.text import printable

BETAS = (0.9, 0.99, 0.999, 0.9999)
MAX_ENDS = 10  # classes listed at each end of a long list


@command(
    {
        "betas": (list[float], list(BETAS), "Each in [0, 1)."),
        "page": (str | None, None, "HTML page to write; default: inspect.html in the folder of the runs of --name."),
    },
    uses=("data",),
)
def inspect(cli: CommandLine) -> None:
    """Look at all images, print counts and weights of the training data, and write a page of thumbnails.

    The exit code is 1 if the data cannot be trained on.
    """
    page, data, console = _page_of(cli), _make_data(cli), Console()
    counts, source = data.class_counts, data.source
    suggested = suggest_beta(counts)
    held_out = [n - count for n, count in zip(data.subset_counts, counts, strict=True)]
    for table in weight_tables(data, sorted({*cli.config.betas, suggested}), held_out):
        console.print(table)
    lines = _count_lines(data, held_out)
    weights = [
        f"A start for the search: --model.loss.weighting.beta {suggested:.6g} (1 - 1 / largest class count).",
        "Its weights are close to inverse frequency, within a factor of 0.63 for any data;",
        "the paper tries 0.9, 0.99, 0.999 and 0.9999.",
    ]
    _print(console, [*lines, *weights])
    problem: str | None = None
    about: list[tuple[str, str]] = []
    headlines, files = lines, None
    if isinstance(source, FileSource) and (files := look_at(source)) is None:
        problem = f"no image is in '{source.folder}', so that only the annotations are inspected."
    if files is not None:
        problem = files.problem()
        about, found = facts(files, data.image_size), findings(files)
        table = Table("image files", "share of the images")
        for row in about:
            table.add_row(*row)
        console.print(table)
        _print(console, [", ".join(filter(None, finding)) + "." for finding in found])
        headlines = [*(f"{what}." for what, _ in found), *lines]
    if files is not None or problem is None:
        source.may_download = False
        try:
            write_text(page, inspect_page(data, headlines, about, files))
            _print(console, [printable(f"Page: {page}")])
        except InputError as error:
            _print(console, [f"No page of thumbnails: {printable(str(error))}"])
    if problem:
        sys.stderr.write(f"lt-cb: fit would stop: {printable(problem)}\n")
        raise SystemExit(1)


def _make_data(cli: CommandLine) -> LongTailedDataModule:
    """Return the data module. Data that cannot be trained on end with exit code 1, after one sentence."""
    try:
        return cli.make_data()
    except InputError as error:
        if not any(isinstance(cause, DataError) for cause in causes(error)):
            raise
        sys.stderr.write(f"lt-cb: error: {printable(input_error(error) or str(error))}\n")
        raise SystemExit(1) from None


def _print(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _page_of(cli: CommandLine) -> Path:
    """Return the path of the page."""
    config = cli.config
    folder = Path(config.folder) if config.folder else Path(config.trainer.default_root_dir) / config.name
    page = Path(config.page) if config.page else folder / "inspect.html"
    if page.is_dir():
        raise InputError(f"--page is '{page}', which is a folder: give the name of an HTML file.")
    return page


def _count_lines(data: LongTailedDataModule, held_out: Sequence[int]) -> list[str]:
    """Return sentences on the numbers of images."""
    counts, unit = data.class_counts, data.task.unit
    least, most = min(count for count in counts if count), max(counts)
    lines = [
        f"{len(counts)} classes, {data.num_images} training images, imbalance factor {most / least:.2f} "
        f"({most} to {least} images)."
    ]
    if data.multi_label:
        lines.append(_label_line(data.training_labels()))
    lines += [f"{n} {split} images cannot be read: skipped." for split, n in data.skipped.items() if n]
    if any(held_out):
        spread = f"{min(held_out)} to {max(held_out)} a class"
        lines.append(f"{sum(held_out)} more {unit}s are held out for validation ({spread}).")
    return lines


def _label_line(labels: Labels) -> str:
    """Return one sentence on the labels of images, (N, C) of 1, 0 and -1 for unknown."""
    numbers, unknown, none = (labels == 1).sum(1), labels < 0, (labels == 0).all(1).sum()
    more = f"; {unknown.sum()} more, of {unknown.any(1).sum()} images, are unknown." if unknown.any() else "."
    return (
        f"{numbers.sum()} labels: {none} images have none, {(numbers > 1).sum()} have several, at most "
        f"{numbers.max()}{more}"
    )


def weight_tables(data: LongTailedDataModule, betas: Sequence[float], held_out: Sequence[int]) -> tuple[Table, Table]:
    """Return a table of effective numbers and a table of class weights, with a column for each beta."""
    counts = data.class_counts
    numbers = [effective_number(counts, beta).tolist() for beta in betas]
    weights = [EffectiveNumber(beta)(counts).tolist() for beta in betas]
    validated = {"held out": held_out} if any(held_out) else {}
    titles = [f"β {beta:.6g}" for beta in betas]
    first = _class_table("Effective number of samples", data, validated, dict(zip(titles, numbers, strict=True)))
    second = _class_table("Class weight", data, {}, dict(zip(titles, weights, strict=True)))
    second.add_section()
    second.add_row("max / min", "", *[f"{max(column) / min(column):.4g}" for column in weights])
    total = max(sum(counts), 1)
    means = [sum(n * weight for n, weight in zip(counts, column, strict=True)) / total for column in weights]
    second.add_row(f"mean weight per {data.task.unit}", "", *[f"{mean:.4g}" for mean in means])
    return first, second


def _class_table(
    title: str, data: LongTailedDataModule, counted: dict[str, Sequence[int]], computed: dict[str, list[float]]
) -> Table:
    """Return a table of the classes, from the largest to the smallest, without the middle of a long list."""
    table = Table("class", title=title)
    for name in ("images", *counted, *computed):
        table.add_column(name, justify="right")
    rows: list[list[str | Text]] = []
    for c in sorted(range(len(data.class_counts)), key=lambda c: -data.class_counts[c]):
        cells = [str(column[c]) for column in (data.class_counts, *counted.values())]
        rows.append(
            [Text(printable(data.class_names[c])), *cells, *[f"{column[c]:.4g}" for column in computed.values()]]
        )
    if len(rows) > 2 * MAX_ENDS:
        rows[MAX_ENDS:-MAX_ENDS] = [[f"{len(rows) - 2 * MAX_ENDS} more", *["…"] * (len(rows[0]) - 1)]]
    for row in rows:
        table.add_row(*row)
    return table
