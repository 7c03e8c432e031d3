"""How fast the reward API is, each figure beside its limit in the same run: `python -m benchmarks.rewards`."""
