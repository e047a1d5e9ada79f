"""View: how images are shown to a network."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from lt_cb.errors import InputError

Interpolation = Literal["bilinear", "bicubic"]
Crop = Literal["padded", "resized"]
CENTRE = 128 / 255  # as mean and std: (x / 255 - CENTRE) / CENTRE = x / 128 - 1 for bytes x


@dataclass(frozen=True)
class View:
    """Size, scaling, crop and normalisation of images.

    Attributes:
        size: height and width in pixels.
        interpolation: filter for images that are scaled.
        crop: ``padded`` scales an image to ``size``. ``resized`` scales a region of the image file: in training a
            random one of 8 to 100 % of its area, in tests the centre without its margin (224 pixels of 256).
        mean: mean of pixel values in [0, 1], one for each channel; a single value is repeated for all channels.
        std: standard deviation of pixel values, above 0, in the same form as ``mean``.
        channels: 3 for RGB, 1 for grey.

    Raises:
        InputError: if a value is out of range.
    """

    size: int
    interpolation: Interpolation = "bilinear"
    crop: Crop = "padded"
    mean: tuple[float, ...] = (CENTRE,)
    std: tuple[float, ...] = (CENTRE,)
    channels: int = 3

    def __post_init__(self) -> None:
        """Check the values, and repeat a single mean or std for all channels."""
        if self.size < 1:
            raise InputError(f"image_size is {self.size}, but must be at least 1.")
        for name, literal in (("crop", Crop), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(literal):
                raise InputError(f"{name} is {getattr(self, name)!r}, but must be {' or '.join(get_args(literal))}.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                raise InputError(f"{name} is {list(values)}, but must have one value, or {self.channels} for channels.")
            object.__setattr__(self, name, tuple(values) * (self.channels // len(values)))
        if min(self.std) <= 0:
            raise InputError(f"std is {list(self.std)}, but must be above 0.")

    @property
    def options(self) -> dict[str, Any]:
        """The attributes that tell how image files are decoded, which ``--data`` has as options of the same names."""
        return {"interpolation": self.interpolation, "crop": self.crop}

    def cache_key(self, *more: str) -> str:
        """Return the part of a cache's name that depends on the view; the default interpolation adds nothing to it."""
        changed = [] if self.interpolation == "bilinear" else [f"interpolation={self.interpolation}"]
        return " ".join([str(self.size), str(self.channels), *more, *changed])
