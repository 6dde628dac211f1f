"""Recipes: how checkpoints/tiny is made from the sandbox, from the tokenizer to the judge."""
