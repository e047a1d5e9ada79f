"""``lt-cb``, also as ``python -m lt_cb``: commands that need no torch do not wait for it."""

import sys
from collections.abc import Sequence

from lt_cb.errors import InputError


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lt-cb``.

    Args:
        args: the command line as a list of words; None takes that of the process.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, if the input is wrong.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words[:1] == ["grid"]:
            from lt_cb.grid import main as grid

            raise SystemExit(grid(words[1:]))
        if words[:1] == ["report"]:
            from lt_cb.report import main as report

            raise SystemExit(report(words[1:]))
    except InputError as error:
        sys.stderr.write(f"lt-cb: error: {error}\n")
        raise SystemExit(2) from None
    from lt_cb.commands.train import main as lightning

    lightning(words)


if __name__ == "__main__":
    main()
