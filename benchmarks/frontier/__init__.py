"""How good a run is: the reward gained at a drift, compared with what the true gradient gains there."""
