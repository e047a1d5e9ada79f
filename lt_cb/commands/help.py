"""Parser whose errors are exceptions, and whose ``--help`` shows on two screens the options that are changed often."""

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lt_cb.commands.restored import names_of

LISTED = ("model.loss", "model.loss.weighting", "model.second_stage", "data.sampler")  # options with their classes
SHORT_HELP = {  # options of the short help, if a command has them
    "run": "config ckpt_path images top probabilities on_unreadable to format trust_checkpoint name folder "
    "seed_everything test_best change_loss prior batch_size num_workers folds lambdas betas gammas taus seeds",
    "data": "source root imbalance_factor imbalance_type n_max subset_seed val_fraction sampler drs_start batch_size "
    "image_size crop horizontal_flip augment num_workers",
    "model": "loss backbone backbone_args optimizer lr_scheduler drw_start second_stage mix metrics fast",
    "trainer": "max_epochs check_val_every_n_epoch accelerator devices precision accumulate_grad_batches "
    "gradient_clip_val logger callbacks enable_progress_bar default_root_dir",
}
MORE_HELP = {
    "--help_all": "all options, with types and in full",
    "--model.loss.help FocalLoss": "options of a class; also --model.optimizer.help, --data.sampler.help",
    "--print_config=skip_default": "print the configuration of these options, and stop",
}


class ParseError(ValueError):
    """jsonargparse's message, over several lines, and the parser that it comes from."""

    def __init__(self, message: str, parser: LightningArgumentParser) -> None:
        super().__init__(message)
        self.parser = parser


class Parser(LightningArgumentParser):
    """A parser that raises its errors instead of ending the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a ParseError."""
        raise ParseError(message, self) from ex

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Return the short help of a command, or the whole help of a class."""
        actions = {action.dest: action for action in self._actions}
        if "help_all" not in actions:
            return super().format_help()
        width = shutil.get_terminal_size().columns
        lines = [f"usage: {self.prog} [--config FILE ...] [--OPTION VALUE ...]"]
        for group, names in SHORT_HELP.items():
            if group == "model" and "data.root" not in actions:  # a checkpoint describes the network
                continue
            keys = [name if group == "run" else f"{group}.{name}" for name in names.split()]
            options = [_option_line(actions[key]) for key in keys if key in actions]
            lines += ["", f"{group}, with defaults:", *options] if options else []
        lines += ["", "classes of lt_cb:"]
        for key in LISTED:
            if key.removesuffix(".weighting") in actions:
                text = f"  --{key:21} {', '.join(names_of(key))}"
                lines += textwrap.wrap(text, width, subsequent_indent=" " * 26, break_on_hyphens=False)
        lines += ["", "more:", *(f"  {words:32} {purpose}" for words, purpose in MORE_HELP.items())]
        return "".join(f"{line if len(line) <= width else f'{line[: width - 1].rstrip()}…'}\n" for line in lines)


class HelpAll(argparse._HelpAction):
    """``--help_all``: prints the help of all options."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it, and exit."""
        sys.stdout.write(LightningArgumentParser.format_help(parser))  # type: ignore[arg-type]
        parser.exit()


def _option_line(action: argparse.Action) -> str:
    """Return an option with its default, as you would type it, and the first clause of its help."""
    value: Any = "FILE" if action.dest == "config" else action.default
    if isinstance(value, Mapping | Namespace) and "class_path" in value:
        value = str(value["class_path"]).rpartition(".")[2]
    elif isinstance(value, list):
        value = f"[{','.join(map(str, value))}]" if all(isinstance(v, float | int) for v in value) else ""
    elif isinstance(value, bool) or value is None:
        value = "null" if value is None else str(value).lower()
    clause = re.split(r"[;.:](?:\s|$)", " ".join((action.help or "").replace("`", "").split()))[0]
    return f"  {f'--{action.dest} {value}':36} {clause}"
