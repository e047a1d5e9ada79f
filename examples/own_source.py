r"""Custom data source with an option: images drawn by a formula.

PYTHONPATH=examples uv run lt-cb fit --config configs/quickstart.yaml \
    --data.source own_source.Stripes --data.source.noise 40
"""

import numpy as np
import numpy.typing as npt

from lt_cb.data import Source, Split


class Stripes(Source):
    """Grey images of stripes. The class is their direction: 8 classes, 200 training and 50 test images each.

    Args:
        root: `--data.root`, which every source gets; not used here.
        noise: standard deviation of the noise, in grey values.
    """

    class_names = [f"{180 * c // 8}°" for c in range(8)]
    counts = [200] * 8
    image_size = 16
    channels = 1

    def __init__(self, root: str, noise: float = 20.0) -> None:
        super().__init__(root)
        self.noise = noise

    def load(self, split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return images, (N, H, W, 1), and class indices, (N,)."""
        rng = np.random.default_rng(0 if split == "train" else 1)
        labels = np.repeat(np.arange(8), 200 if split == "train" else 50)
        y, x = np.mgrid[:16, :16]
        angle = np.pi * labels[:, None, None] / 8
        phase = rng.uniform(0, 2 * np.pi, (len(labels), 1, 1))
        waves = np.sin(x * np.cos(angle) + y * np.sin(angle) + phase)
        grey = 128 + 80 * waves + self.noise * rng.standard_normal(waves.shape)
        return grey.clip(0, 255).astype(np.uint8)[..., None], labels
