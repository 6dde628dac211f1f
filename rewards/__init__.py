"""Reward protocol, the weighted suite and analytic rewards."""
