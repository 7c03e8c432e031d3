"""How few-step models are sampled: one module for each of the stock schedulers that they are published with."""
