"""Every method by the same rewards, prompts and reward calls, with the ablations of LaSRO and a page of both."""
