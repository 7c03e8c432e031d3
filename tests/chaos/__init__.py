"""Real processes, a thousand faults, and a count of what was lost, doubled or falsified: `python -m tests.chaos`."""
