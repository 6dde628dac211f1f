"""A small synthetic world of captioned sprite clips whose quality is computable."""
