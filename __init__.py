"""longtake: evaluation and RLHF around a video-generation model core.

The package root is the repository root; import everything as ``longtake.<folder>.<module>``.
"""

__version__ = "0.1.0"
