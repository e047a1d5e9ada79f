"""Loaders: batches of images in memory, or decoded from their files on demand."""

from lt_cb.data.loaders.folder import folder_loader

__all__ = ["folder_loader"]
