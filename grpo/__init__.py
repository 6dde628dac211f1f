"""Multi-reward GRPO for flow matching (Algorithm 1 of the report)."""
