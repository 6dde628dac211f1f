"""VBench 1.0 and 2.0: plan, generate, run the public code elsewhere, aggregate, compare, submit."""
