"""Unfamiliar images: a score for images that may belong to no known class."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_cb.heads.solve import Basis

MAX_AXES = 256


@dataclass
class Familiarity:
    """Class means of features on the unit sphere, in axes in which the features have covariance 1."""

    centre: Tensor  #: mean of the unit features, shape (D,)
    whitening: Tensor  #: shape (D, R)
    means: Tensor  #: of the classes, shape (C, R)

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, num_classes: int) -> "Familiarity":
        raise NotImplementedError
