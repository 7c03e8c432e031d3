"""How good a run is, said exactly: reward gained at a drift, beside the limit that the true gradient sets."""
