"""``lt-cb inspect``: class counts, effective numbers and class weights, to choose a beta before training."""

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_cb.commands.cli import CommandLine
from lt_cb.commands.messages import run_command
from lt_cb.data import LongTailedDataModule
from lt_cb.longtail.subset import Labels
from lt_cb.losses import EffectiveNumber, effective_number, suggest_beta

BETAS = (0.9, 0.99, 0.999, 0.9999)
MAX_ENDS = 10  # classes listed at each end of a long list


def options(parser: LightningArgumentParser) -> None:
    """Add the option of ``inspect``."""
    parser.add_argument("--betas", type=list[float], default=list(BETAS), help="Each in [0, 1).")


def inspect(data: LongTailedDataModule, betas: Sequence[float]) -> None:
    """Print counts, effective numbers and weights of the training data."""
    console = Console()
    counts, suggested, unit = data.class_counts, suggest_beta(data.class_counts), data.task.unit
    held_out = [n - count for n, count in zip(data.subset_counts, counts, strict=True)]
    for table in weight_tables(data.class_names, counts, sorted({*betas, suggested}), held_out, unit):
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


def _label_line(labels: Labels) -> str:
    """Return one sentence on the labels of images, (N, C) of 1, 0 and -1 for unknown."""
    numbers, unknown, none = (labels == 1).sum(1), labels < 0, (labels == 0).all(1).sum()
    more = f"; {unknown.sum()} more, of {unknown.any(1).sum()} images, are unknown." if unknown.any() else "."
    return (
        f"{numbers.sum()} labels: {none} images have none, {(numbers > 1).sum()} have several, at most "
        f"{numbers.max()}{more}"
    )


def weight_tables(
    class_names: Sequence[str],
    class_counts: Sequence[int],
    betas: Sequence[float],
    held_out: Sequence[int] = (),
    unit: str = "image",
) -> list[Table]:
    """Return two tables, of effective numbers and of class weights, with a column for each beta.

    Args:
        class_names: C names.
        class_counts: training images of each class, shape (C,).
        betas: each in [0, 1).
        held_out: images of each class held out for validation, shape (C,); a column of the first table if any.
        unit: image or label, as the mean weight is of.

    Raises:
        InputError: if a beta is outside [0, 1).
    """
    order = sorted(range(len(class_counts)), key=lambda c: -class_counts[c])
    listed: list[int | None] = list(order)
    if len(order) > 2 * MAX_ENDS:
        listed = [*order[:MAX_ENDS], None, *order[-MAX_ENDS:]]
    numbers = [effective_number(class_counts, beta) for beta in betas]
    weights = [EffectiveNumber(beta)(class_counts) for beta in betas]
    tables = []
    for title, columns in (("Effective number of samples", numbers), ("Class weight", weights)):
        table = Table(title=title)
        table.add_column("class")
        table.add_column("images", justify="right")
        validates = any(held_out) and columns is numbers
        if validates:
            table.add_column("held out", justify="right")
        for beta in betas:
            table.add_column(f"β {beta:.6g}", justify="right")
        for c in listed:
            if c is None:
                table.add_row(f"{len(order) - 2 * MAX_ENDS} more", *["…"] * (1 + validates + len(betas)))
            else:
                cells = [f"{column[c].item():.4g}" for column in columns]
                if validates:
                    cells.insert(0, str(held_out[c]))
                table.add_row(Text(class_names[c]), str(class_counts[c]), *cells)
        tables.append(table)
    tables[1].add_section()
    ratios = [f"{(w.max() / w.min()).item():.4g}" for w in weights]
    tables[1].add_row("max / min", "", *ratios)
    total = max(sum(class_counts), 1)
    means = [sum(n * v for n, v in zip(class_counts, w.tolist(), strict=True)) / total for w in weights]
    tables[1].add_row(f"mean weight per {unit}", "", *[f"{mean:.4g}" for mean in means])
    return tables


def main(args: Sequence[str]) -> None:
    """Run ``lt-cb inspect``.

    Args:
        args: the words behind ``inspect``.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """

    def run() -> None:
        cli = CommandLine("inspect", args, options, uses=("data",))
        inspect(cli.make_data(), cli.config.betas)

    run_command(run)
