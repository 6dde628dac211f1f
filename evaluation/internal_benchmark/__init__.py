"""The open replica of the report's internal benchmark: prompts, reference images, their rules."""
