"""Flow-matching training of the base model."""
