"""Many runs: grids and reports. Nothing outside this package imports it."""
