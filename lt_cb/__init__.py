"""Class-balanced losses for long-tailed recognition, on PyTorch Lightning."""

__version__ = "0.1.0"
