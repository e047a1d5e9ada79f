"""Small data sets with made-up content, in the layouts and file formats that published data sets and tools have.

``LAYOUTS[name](folder)`` writes a layout into an empty folder, and returns the labels that a reader must find in it.
They are counted in the written files with the csv and json modules.
"""

from layouts import kaggle, science, tools
from layouts.base import LAYOUTS, Expected

__all__ = ["LAYOUTS", "Expected", "kaggle", "science", "tools"]
