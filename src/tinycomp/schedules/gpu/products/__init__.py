"""Products of matrices and convolutions, on plain cores and on tensor cores of a warp."""
