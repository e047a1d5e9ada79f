"""Batches of an epoch: drawn from (seed, epoch), of images in memory or decoded as they are asked for."""
