"""The model: flow maths, DiT, VAE, text encoder, samplers, LoRA, checkpoints, video files."""
