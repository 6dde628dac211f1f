"""Qwen2-VL as a reward model: configuration, layers, the model and its weights in any layout."""
