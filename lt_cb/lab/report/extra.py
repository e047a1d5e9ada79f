"""Packages of the extra ``report``: altair, scipy and vl-convert."""

from lt_cb.errors import InputError

try:
    import altair
    import vl_convert
    from scipy import stats
except ImportError as error:
    raise InputError(
        f"a report needs the package {error.name}, which is not installed: run pip install 'lt_cb[report]'."
    ) from error

__all__ = ["altair", "stats", "vl_convert"]
