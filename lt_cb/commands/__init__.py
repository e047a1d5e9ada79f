"""Commands of ``lt-cb``: one function each, listed in ``lt_cb/__main__.py``."""
