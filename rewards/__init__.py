"""Reward models: the protocol, the registry and the weighted suite."""
