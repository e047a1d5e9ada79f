"""``lt-cb inspect``: class counts, effective numbers and class weights, to choose a beta before training."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_cb.commands.cli import CommandLine, command
from lt_cb.data import FileSource, LongTailedDataModule
from lt_cb.data.sources.checks import check_images
from lt_cb.longtail.subset import Labels
from lt_cb.losses import EffectiveNumber, effective_number, suggest_beta
from lt_cb.text import printable

BETAS = (0.9, 0.99, 0.999, 0.9999)
MAX_ENDS = 10  # classes listed at each end of a long list


@command({"betas": (list[float], list(BETAS), "Each in [0, 1).")}, uses=("data",))
def inspect(cli: CommandLine) -> None:
    """Print counts, effective numbers and weights of the training data; check the image files of all splits."""
    data, console = cli.make_data(), Console()
    counts, unit = data.class_counts, data.task.unit
    suggested = suggest_beta(counts)
    held_out = [n - count for n, count in zip(data.subset_counts, counts, strict=True)]
    for table in weight_tables(data, sorted({*cli.config.betas, suggested}), held_out):
        console.print(table)
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
    lines += [
        f"A start for the search: --model.loss.weighting.beta {suggested:.6g} (1 - 1 / largest class count).",
        "Its weights are close to inverse frequency, within a factor of 0.63 for any data;",
        "the paper tries 0.9, 0.99, 0.999 and 0.9999.",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    if isinstance(data.source, FileSource):
        check_images(data.source, readable=bool(data.skipped))


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
