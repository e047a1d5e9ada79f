r"""Custom dataset in memory: grey stripes in 8 directions.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml \
    --data.source own_source.Stripes --data.source.noise 40
"""

import numpy as np

from lt_cb.data import Source


class Stripes(Source):
    """200 training and 50 test images of each direction."""

    class_names = [f"{180 * c // 8}°" for c in range(8)]
    counts = [200] * 8
    image_size = 16
    channels = 1

    def __init__(self, root: str, noise: float = 20.0):
        super().__init__(root)
        self.noise = noise

    def load(self, split):
        """Return images, uint8 (N, H, W, channels), and labels, int64 (N,)."""
        rng = np.random.default_rng(0 if split == "train" else 1)
        labels = np.arange(8).repeat(200 if split == "train" else 50)
        angle = np.pi * labels[:, None, None] / 8
        phase = rng.uniform(0, 2 * np.pi, angle.shape)
        y, x = np.mgrid[:16, :16]
        waves = np.sin(x * np.cos(angle) + y * np.sin(angle) + phase)
        noise = self.noise * rng.standard_normal(waves.shape)
        grey = (128 + 80 * waves + noise).clip(0, 255)
        return grey.astype(np.uint8)[..., None], labels
