"""Batches of an epoch: drawn from (seed, epoch), of images in memory or decoded as they are asked for."""

from lt_cb.data.loaders.folder import folder_loader

__all__ = ["folder_loader"]
