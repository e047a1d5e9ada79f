"""``lt-cb completion``: what a shell completes, as a script: Python would import torch at each press of the key."""

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Sequence
from typing import get_args

from lt_cb.__main__ import COMMANDS
from lt_cb.__main__ import main as lt_cb
from lt_cb.commands.messages import CLASSES, known
from lt_cb.data.sources import SOURCES
from lt_cb.errors import ArgumentParser
from lt_cb.losses.base import WeightOf
from lt_cb.models.build import OURS

FILES = "--config | -c | --ckpt_path | --data.root | --folder | --images | --trainer.default_root_dir | --out | --save"
VALUES = {
    "--data.source": list(SOURCES),
    "--model.backbone": list(OURS),
    "--model.loss.weight_of": list(get_args(WeightOf)),
    "--prior": ["uniform", "train"],
    "--print_config": ["skip_default"],
    "--trainer.accelerator": ["auto", "cpu", "gpu"],
    "--trainer.precision": ["32-true", "16-mixed", "bf16-mixed"],
}
NOT_GIVEN = {"class_counts", "num_images", "options"}  # arguments of losses that are linked, or stand for others
SCRIPT = """\
# of lt-cb completion
_lt_cb() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} start= choices= options=
    COMPREPLY=()
    case ${{COMP_WORDS[1]}} in
{options}
    esac
    # bash has --option=value as three words, unless COMP_WORDBREAKS was changed; zsh has it as one
    if [[ $word == = ]]; then
        word=
    elif [[ $before == = ]]; then
        before=${{COMP_WORDS[COMP_CWORD-2]}}
    elif [[ $word == --*=* ]]; then
        before=${{word%%=*}} start=${{word%%=*}}= word=${{word#*=}}
    fi
    if [[ $COMP_CWORD == 1 ]]; then
        choices="{commands}"
    elif [[ $word == -* ]]; then
        choices=$options
    else
        case $before in
{values}
            {files} | --dry-run) return ;;
            -*) compopt +o default 2>/dev/null ;;
            grid | report) return ;;
            *) choices=$options ;;
        esac
    fi
    COMPREPLY=($(compgen -P "$start" -W "$choices" -- "$word"))
}}
complete -o default -F _lt_cb lt-cb  # where nothing is to choose from, files
"""


def script() -> str:
    """Return the script for bash, made of what each command says when it is asked for help."""
    values = {**VALUES, **{f"--{key}": [cls.__name__ for cls in known(kind)] for key, kind in CLASSES.items()}}
    options = {"completion": ["bash", "zsh"]}
    for command in [name for name in COMMANDS if name not in options]:
        text = _help(command)
        found = re.findall(r"^  (?:-\w[^,]*, )?(--[\w.-]+)(?: \{([^}\s]+)\})?", text, re.MULTILINE)
        values |= {option: choices.split(",") for option, choices in found if choices}
        options[command] = [option for option, _ in found]
        for key, kind in CLASSES.items():
            if f"--{key.removesuffix('.weighting')}" in options[command]:
                own = {name for cls in known(kind) for name in inspect.signature(cls).parameters} - NOT_GIVEN
                options[command] += [f"--{key}.{name}" for name in own]
    values |= {f"--{key}.help": values[f"--{key}"] for key in CLASSES}
    return SCRIPT.format(
        commands=" ".join(COMMANDS),
        options="\n".join(f'        {name}) options="{" ".join(sorted({*o}))}" ;;' for name, o in options.items()),
        values="\n".join(f'            {option}) choices="{" ".join(v)}" ;;' for option, v in sorted(values.items())),
        files=FILES,
    )


def _help(command: str) -> str:
    option = "--help" if COMMANDS[command][0] in ("lt_cb.grid", "lt_cb.report") else "--help_all"
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        lt_cb([command, option])
    return shown.getvalue()


def main(args: Sequence[str]) -> None:
    """Run ``lt-cb completion``.

    Args:
        args: the words behind ``completion``.

    Raises:
        InputError: if the shell is none that is known.
    """
    parser = ArgumentParser("lt-cb completion", description="Print a script that completes the words of lt-cb.")
    parser.add_argument("shell", choices=("bash", "zsh"), help="whose completion it is")
    if parser.parse_args(args).shell == "zsh":
        sys.stdout.write("autoload -U +X bashcompinit && bashcompinit\n")
    sys.stdout.write(script())
