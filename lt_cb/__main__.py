"""Run the command line as ``python -m lt_cb``."""

from lt_cb.cli import main

if __name__ == "__main__":
    main()
