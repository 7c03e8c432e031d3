"""Noise tilting: the frozen generator draws from a noise that a small adapter has moved. Pure functions.

    x' = x_tau0 + D,    D = e_theta(x_tau0, tau_0, c) - e_base(x_tau0, tau_0, c),    z1 = f_base(x', tau_0, c)

e is the network's output, so that D is 0 for an untrained adapter. Where the base maps N(0, I) to its samples, D that
ascends a reward with the penalty |D|^2 / 2 approaches the distribution that the reward tilts (HyperNoise: Eyring et
al., arXiv 2508.09968).
"""

from __future__ import annotations

from torch import Tensor


def noise_shift(output: Tensor, base_output: Tensor) -> Tensor:
    """D, from what the network says with its adapter and without; the latter is a constant."""
    return output - base_output.detach()


def shift_penalty(shift: Tensor) -> Tensor:
    """mean D^2, |D|^2 / 2 in other units."""
    return shift.square().mean()
