"""``lt-cb inspect``: class counts, effective numbers and class weights, to choose a beta before training."""

from collections.abc import Sequence

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table

from lt_cb.commands.messages import Parser
from lt_cb.commands.train import CLI, run
from lt_cb.data import LongTailedDataModule
from lt_cb.longtail.subset import Labels
from lt_cb.losses import EffectiveNumber, effective_number, suggest_beta
from lt_cb.module import LongTailedClassifier

BETAS = (0.9, 0.99, 0.999, 0.9999)
SHOWN = 10  # most frequent and rarest classes of a long list


class Inspect(CLI):
    """The command line of a training, of which only the data are made."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the betas."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--betas", type=list[float], default=list(BETAS), help="Each in [0, 1).")
        parser.add_argument("--ckpt_path", type=str | None, help="A run, to look at its data.")
        parser.add_argument("--weights_only", type=bool | None, help="Is not looked at, but is in the config of a run.")

    def before_instantiate_classes(self) -> None:
        """Look at nothing but the data."""

    def instantiate_classes(self) -> None:
        """Make the data module, by a parser without a model that its classes would be linked to."""
        parser = Parser()
        parser.add_lightning_class_args(self._datamodule_class, "data")
        data = Namespace(data=self.config.data)  # type: ignore[no-untyped-call]
        self.datamodule = parser.instantiate_classes(data).data

    def after_instantiate_classes(self) -> None:
        """There is nothing to compare."""

    def run(self) -> None:
        """Print counts, numbers and weights."""
        data, console = self.datamodule, Console()
        counts, suggested = data.class_counts, suggest_beta(data.class_counts)
        held_out = [n - count for n, count in zip(data.subset_counts, counts, strict=True)]
        betas, of = sorted({*self.config.betas, suggested}), "label" if data.multi_label else "image"
        for table in weight_tables(data.class_names, counts, betas, held_out, of):
            console.print(table)
        least = min(count for count in counts if count)
        validation = (
            f"{sum(held_out)} more {of}s are held out for validation ({min(held_out)} to {max(held_out)} a class)."
        )
        lines = (
            f"{len(counts)} classes, {data.num_images} training images, imbalance factor {max(counts) / least:.2f} "
            f"({max(counts)} to {least} images).",
            *([_of_several(data.training_labels())] if data.multi_label else []),
            *[f"{n} {split} images cannot be read: skipped." for split, n in self.datamodule.skipped.items() if n],
            *([validation] if any(held_out) else []),
            f"A start for the search: --model.loss.weighting.beta {suggested:.6g} (1 - 1 / largest class count).",
            "That is close to inverse frequency, within a factor of 0.63 whatever the data;",
            "the paper tries 0.9, 0.99, 0.999 and 0.9999.",
        )
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)


def _of_several(labels: Labels) -> str:
    """Return how many labels images have: of 1, 0 and -1 for unknown, shape (N, C)."""
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
    of: str = "image",
) -> list[Table]:
    """Return two tables, of effective numbers and of class weights, with a column for each beta.

    Args:
        class_names: C names.
        class_counts: training images of each class, shape (C,).
        betas: each in [0, 1).
        held_out: further images of each class for validation, shape (C,), which the first table shows if there are any.
        of: what the mean weight is of.

    Raises:
        InputError: if a beta is outside [0, 1).
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
        validates = any(held_out) and columns is numbers
        if validates:
            table.add_column("held out", justify="right")
        for beta in betas:
            table.add_column(f"β {beta:.6g}", justify="right")
        for c in shown:
            if c is None:
                table.add_row(f"{len(order) - 2 * SHOWN} more", *["…"] * (1 + validates + len(betas)))
            else:
                cells = [f"{column[c].item():.4g}" for column in columns]
                if validates:
                    cells.insert(0, str(held_out[c]))
                table.add_row(class_names[c], str(class_counts[c]), *cells)
        tables.append(table)
    tables[1].add_section()
    ratios = [f"{(w.max() / w.min()).item():.4g}" for w in weights]
    tables[1].add_row("max / min", "", *ratios)
    total = max(sum(class_counts), 1)
    means = [sum(n * v for n, v in zip(class_counts, w.tolist(), strict=True)) / total for w in weights]
    tables[1].add_row(f"mean weight per {of}", "", *[f"{mean:.4g}" for mean in means])
    return tables


def main(args: Sequence[str]) -> None:
    """Run ``lt-cb inspect``.

    Args:
        args: the words behind ``inspect``.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    run(Inspect, "inspect", args, LongTailedClassifier, LongTailedDataModule)
