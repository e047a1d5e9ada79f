"""Linear heads on the features of a frozen backbone: features kept on disk, heads solved, the best recommended."""
