"""Many runs: grids, workers and reports. Nothing outside this package imports it."""
