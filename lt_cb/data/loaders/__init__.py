"""Loaders: batches of images in memory, or decoded from their files on demand."""
