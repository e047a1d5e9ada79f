"""A training that ends with the grid that started it: ``python -m lt_cb.lab.child fit ...``.

The grid holds the other end of standard input, which closes when the grid ends, even by SIGKILL.
"""

import os
import signal
import threading

from lt_cb.__main__ import main


def _end_with_grid() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the grid, which sends SIGTERM
    threading.Thread(target=_end_with_grid, daemon=True).start()
    main()
