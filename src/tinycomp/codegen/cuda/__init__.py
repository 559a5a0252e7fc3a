"""CUDA C++ from loop IR and tile programs, and NVRTC."""
