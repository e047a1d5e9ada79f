"""Effective numbers and class weights of a data set at several beta, to choose one before training."""

from collections.abc import Sequence

from rich.table import Table

from lt_cb.losses import EffectiveNumber, effective_number

SHOWN = 10  # most frequent and rarest classes of a long list


def weight_tables(class_names: Sequence[str], class_counts: Sequence[int], betas: Sequence[float]) -> list[Table]:
    """Return two tables, of effective numbers and of class weights, with a column for each beta.

    Args:
        class_names: C names.
        class_counts: training images of each class, shape (C,).
        betas: each in [0, 1).

    Raises:
        InputError: (a ValueError) if a beta is outside [0, 1).
    """
    order = sorted(range(len(class_counts)), key=lambda c: -class_counts[c])
    shown: list[int | None] = list(order)
    if len(order) > 2 * SHOWN:
        shown = [*order[:SHOWN], None, *order[-SHOWN:]]
    numbers = [effective_number(class_counts, beta) for beta in betas]
    weights = [EffectiveNumber(beta)(class_counts) for beta in betas]
    tables = []
    for title, columns in (("Effective number of samples", numbers), ("Class weight", weights)):
        table = Table(title=title)
        table.add_column("class")
        table.add_column("images", justify="right")
        for beta in betas:
            table.add_column(f"β {beta:.6g}", justify="right")
        for c in shown:
            if c is None:
                table.add_row(f"{len(order) - 2 * SHOWN} more", *["…"] * (1 + len(betas)))
            else:
                cells = [f"{column[c].item():.4g}" for column in columns]
                table.add_row(class_names[c], str(class_counts[c]), *cells)
        tables.append(table)
    tables[1].add_section()
    ratios = [f"{(w.max() / w.min()).item():.4g}" for w in weights]
    tables[1].add_row("max / min", "", *ratios)
    total = max(sum(class_counts), 1)
    means = [sum(n * v for n, v in zip(class_counts, w.tolist(), strict=True)) / total for w in weights]
    tables[1].add_row("mean of image", "", *[f"{mean:.4g}" for mean in means])
    return tables
