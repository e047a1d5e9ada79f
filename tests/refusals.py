"""How a command refuses its input."""

import itertools
from pathlib import Path

import pytest

from lt_cb.__main__ import main


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the sentence with which a command is refused; nothing may have been written."""
    before = sorted(Path("runs").rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    assert sorted(Path("runs").rglob("*")) == before
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("lt-cb: error: ")]
    return sentence.removeprefix("lt-cb: error: ")


def alias_bomb() -> str:
    """Return a short YAML text that stands for 10^9 values."""
    lines = [f"{key}: &{key} [{', '.join([f'*{before}'] * 10)}]" for before, key in itertools.pairwise("abcdefghij")]
    return "\n".join(["a: &a [x]", *lines])
