"""The inner loops of the reconstruction: Numba for the CPU, CUDA C for the GPU; the same arithmetic in both."""
