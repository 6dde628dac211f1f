"""Kernels in Gluon, Triton's experimental language for explicit control, for Hopper GPUs.

Imported at the first call on such a GPU.
"""
