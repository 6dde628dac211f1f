"""Kernels in Triton, for any GPU. Imported with the first CUDA tensor, never for a CPU."""
