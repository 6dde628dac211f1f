"""Statistics that turn per-sample scores into numbers with intervals."""
