"""Warnings for users of the command line, shown once and without a place in the code."""

from functools import partial

from lightning.pytorch.utilities import rank_zero_warn

warn = partial(rank_zero_warn, stacklevel=1)  # of the text only
