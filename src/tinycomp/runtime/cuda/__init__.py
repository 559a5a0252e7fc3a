"""Models and kernels on a GPU: driver, memory, arrays, graphs."""
