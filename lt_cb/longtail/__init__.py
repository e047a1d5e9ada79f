"""Long-tailed class counts, subsets and samplers: NumPy and PyTorch alone."""
