"""Long-tailed class counts and subsets (here), samplers (`sampler`) and several labels an image (`several`)."""

from lt_cb.longtail.profile import class_counts_exponential, class_counts_step
from lt_cb.longtail.subset import Subset, hold_out, long_tailed_subset

__all__ = ["Subset", "class_counts_exponential", "class_counts_step", "hold_out", "long_tailed_subset"]
