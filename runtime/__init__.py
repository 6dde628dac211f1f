"""House services below every model: errors, random keys, configs, run directories, logging."""
