"""HTTP routes of the surrogate trainer, by what they are for."""
