"""The files of a run: its folder, its record and its checkpoint."""
