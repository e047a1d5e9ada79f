"""``lt-cb inspect``: a look at all images, class counts, effective numbers and class weights, before training."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_cb.commands.cli import CommandLine, command
from lt_cb.commands.inspect_page import inspect_page
from lt_cb.commands.messages import causes, input_error
from lt_cb.data import FileSource, LongTailedDataModule
from lt_cb.data.sources.checks import ImageFiles, look_at
from lt_cb.errors import ERROR_PREFIX, DataError, InputError
from lt_cb.losses import EffectiveNumber, effective_number, suggest_beta
from lt_cb.runs.folder import write_text
from lt_cb.text import printable

BETAS = (0.9, 0.99, 0.999, 0.9999)
MAX_ENDS = 10  # classes listed at each end of a long list
MAX_LISTED = 5  # images or groups in a sentence
MOST = 4  # sizes, modes or formats, in a cell


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
        sys.stderr.write(f"{ERROR_PREFIX}{printable(input_error(error) or str(error))}\n")
        raise SystemExit(1) from None


def _print(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _page_of(cli: CommandLine) -> Path:
    config = cli.config
    folder = Path(config.folder) if config.folder else Path(config.trainer.default_root_dir) / config.name
    page = Path(config.page) if config.page else folder / "inspect.html"
    if page.is_dir():
        raise InputError(f"--page is '{page}', which is a folder: give the name of an HTML file.")
    return page


def _count_lines(data: LongTailedDataModule, held_out: Sequence[int]) -> list[str]:
    counts, unit = data.class_counts, data.task.unit
    least, most = min(count for count in counts if count), max(counts)
    lines = [
        f"{len(counts)} classes, {data.num_images} training images, imbalance factor {most / least:.2f} "
        f"({most} to {least} images)."
    ]
    if data.multi_label:
        labels = data.training_labels()
        numbers, unknown, none = (labels == 1).sum(1), labels < 0, (labels == 0).all(1).sum()
        more = f"; {unknown.sum()} more, of {unknown.any(1).sum()} images, are unknown." if unknown.any() else "."
        several = f"{(numbers > 1).sum()} have several, at most {numbers.max()}{more}"
        lines.append(f"{numbers.sum()} labels: {none} images have none, {several}")
    lines += [f"{n} {split} images cannot be read: skipped." for split, n in data.skipped.items() if n]
    if any(held_out):
        spread = f"{min(held_out)} to {max(held_out)} a class"
        lines.append(f"{sum(held_out)} more {unit}s are held out for validation ({spread}).")
    return lines


def weight_tables(data: LongTailedDataModule, betas: Sequence[float], held_out: Sequence[int]) -> tuple[Table, Table]:
    """Return a table of effective numbers and a table of class weights, with a column for each beta."""
    counts = data.class_counts
    numbers = {f"β {beta:.6g}": effective_number(counts, beta).tolist() for beta in betas}
    weights = {f"β {beta:.6g}": EffectiveNumber(beta)(counts).tolist() for beta in betas}
    validated = {"held out": held_out} if any(held_out) else {}
    first = _class_table("Effective number of samples", data, {**validated, **numbers})
    second = _class_table("Class weight", data, weights)
    second.add_section()
    second.add_row("max / min", "", *[f"{max(column) / min(column):.4g}" for column in weights.values()])
    means = [np.dot(counts, column) / max(sum(counts), 1) for column in weights.values()]
    second.add_row(f"mean weight per {data.task.unit}", "", *[f"{mean:.4g}" for mean in means])
    return first, second


def _class_table(title: str, data: LongTailedDataModule, columns: Mapping[str, Sequence[float]]) -> Table:
    """Return a table of the classes, from the largest to the smallest, without the middle of a long list."""
    columns, table = {"images": data.class_counts, **columns}, Table("class", title=title)
    for name in columns:
        table.add_column(name, justify="right")
    rows: list[list[str | Text]] = []
    for c in sorted(range(len(data.class_counts)), key=lambda c: -data.class_counts[c]):
        cells = [str(n) if isinstance(n := column[c], int) else f"{n:.4g}" for column in columns.values()]
        rows.append([Text(printable(data.class_names[c])), *cells])
    if len(rows) > 2 * MAX_ENDS:
        rows[MAX_ENDS:-MAX_ENDS] = [[f"{len(rows) - 2 * MAX_ENDS} more", *["…"] * (len(rows[0]) - 1)]]
    for row in rows:
        table.add_row(*row)
    return table


def share(number: int, total: int) -> str:
    """Return a number as a share in percent."""
    return f"{100 * number / max(total, 1):.1f} %"


def shares(counts: Iterable[tuple[str, int]], counted: bool = False) -> str:
    """Return names with their shares, and with their numbers if asked for; the first of them."""
    known = list(counts)
    total = sum(n for _, n in known)
    listed = [f"{name} {n} ({share(n, total)})" if counted else f"{name} ({share(n, total)})" for name, n in known]
    return ", ".join(listed[:MOST]) + (f" and {len(known) - MOST} more" if len(known) > MOST else "")


def facts(files: ImageFiles, side: int) -> list[tuple[str, str]]:
    """Return facts of the readable files by name; ``side`` is the size they are scaled to."""
    rows = files.rows[files.readable]
    if not len(rows):
        return []
    sizes = Counter(zip(rows["width"].tolist(), rows["height"].tolist(), strict=True))
    small = int((np.minimum(rows["width"], rows["height"]) < side).sum())
    splits = ((split, int((files.splits == split).sum())) for split in files.source.splits)
    found = [("splits", shares(splits, counted=True))]
    found.append(("sizes", shares((f"{width} x {height}", n) for (width, height), n in sizes.most_common())))
    if len(sizes) > 1:
        ends = (("smallest", min(sizes, key=math.prod)), ("largest", max(sizes, key=math.prod)))
        found += [(name, f"{width} x {height}") for name, (width, height) in ends]
    for name, column in (("modes", "mode"), ("formats", "format")):
        found.append((name, shares(Counter(text.decode() for text in rows[column].tolist()).most_common())))
    groups = {split: files.source.groups(split) for split in files.source.splits}
    numbered = [(split, len(np.unique(ids))) for split, ids in groups.items() if ids is not None]
    if numbered:
        found.insert(1, ("groups", shares(numbered, counted=True)))
    return [*found, (f"below {side} pixels, enlarged", share(small, len(rows)))]


def findings(files: ImageFiles) -> list[tuple[str, str]]:
    """Return the problems of the files, the worst first: a number, and examples or an empty text."""
    found = []
    if len(files.missing):
        found.append((f"missing files: {len(files.missing)}", _listed(map(files.name, files.missing.tolist()))))
    if files.unreadable:
        reasons = (f"{files.name(i)}: {why}" for i, why in files.unreadable.items())
        found.append((f"unreadable files: {len(files.unreadable)}", _listed(reasons)))
    groups = files.duplicates
    across, differ = files.across, files.differ
    for what, some in (
        ("duplicates between train and other splits", [group for group in groups if across(group)]),
        ("duplicates with different labels", [group for group in groups if differ(group)]),
        ("other duplicates", [group for group in groups if not across(group) and not differ(group)]),
    ):
        if some:
            found.append((f"{what}: {len(some)}", _groups(files, some, " = ")))
    for split, pairs in files.near_duplicates.items():
        if pairs:
            unlike = sum(map(files.differ, pairs))
            numbers = f"{len(pairs)} pair{'s' * (len(pairs) > 1)}, {unlike} with different labels"
            found.append((f"near-duplicates between train and {split}: {numbers}", _groups(files, pairs, " and ")))
    if not groups and not any(files.near_duplicates.values()):
        found.append(("duplicates, and near-duplicates between train and other splits: none", ""))
    return [(what, printable(examples)) for what, examples in found]


def _groups(files: ImageFiles, groups: Sequence[Sequence[int]], sign: str) -> str:
    return "such as " + _listed(sign.join(map(files.name, group[:3])) for group in groups)


def _listed(texts: Iterable[str]) -> str:
    known = list(texts)
    more = f"; and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return "; ".join(known[:MAX_LISTED]) + more
