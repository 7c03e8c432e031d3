"""Spending a drift budget: how far the generator may be by now, and how hard it is held there. Pure functions.

    L = lambda(D) L_reg - c1 mean S[R(z1)] - c2 mean S[R(z2)],     D^2 = L_reg
    lambda(D) = lambda_0 + (STIFFNESS / D*) max(0, D / D* - 1)

D is the distance from the base and D* the one allowed by now. Below it the generator is free but for lambda_0. Beyond
it the weight grows with the excess, until both gradients balance a little above D*. So adaptive KL control holds PPO
(Ziegler et al., arXiv 1909.08593, section 2.2); here the update's own distance decides, not one measured before, so
that the weight never lags behind. From there the generator moves along the surface D = D*, to the best place on it.

A surrogate that was trained on samples of the base is right near them, and wrong further out until it has samples from
there. So D* is at most a trust radius, which grows while the reward rises and shrinks while it falls, as in trust
region methods (Nocedal and Wright, Numerical Optimization, section 4.1). These go by the actual over the predicted
improvement; here both are known by their order alone: which of an own and a base's sample is better.
"""

from __future__ import annotations

RISE_SHARE = 0.6
"""Of the updates, in which the target rises to the budget. In the rest the generator improves where it is."""
START_SHARE = 0.25
"""Of the budget, where the target starts."""
FIRST_RADIUS, LEAST_RADIUS = 0.1, 0.05
"""Of the budget: the trust radius at first, and the smallest."""
GROWTH = 1.25
"""Times the radius: that much it grows or shrinks by a gain of SURE standard errors above or below 0."""
SURE = 2.0
FASTEST = 4.0
"""Most powers of GROWTH in one round: an easy reward's gain is beyond doubt at once. It shrinks by one at most."""
AGREEMENT = 0.9
"""Share of own and base's samples ranked as the reward ranks them, from which on any gain is beyond doubt: it differs
between prompts by more than its mean, while its sign does not."""
STIFFNESS = 15.0
"""S changes by about 2 where latents of deviation 1 move by D: the balance is then some 15 % beyond D*."""


def drift_target(share: float, budget: float) -> float:
    """The drift allowed after a share of all updates, 0 to 1: a straight rise from START_SHARE of the budget to all."""
    return budget * min(1.0, START_SHARE + (1 - START_SHARE) * share / RISE_SHARE)


def holding_weight(weight: float, squared_distance: float, allowed_distance: float) -> float:
    """lambda(D) for L_reg = `squared_distance`; `weight` is lambda_0. `allowed_distance` D* is above 0."""
    excess = squared_distance**0.5 / allowed_distance - 1
    return weight + STIFFNESS / allowed_distance * max(0.0, excess)


def trust_radius(radius: float, gain: float, error: float, budget: float, agreement: float = 0.0) -> float:
    """The next radius, by the newest rounds' gain over the base and its standard error; an infinite one changes none.

    radius <- radius GROWTH^z, z = gain / (SURE error) within -1 and FASTEST; FASTEST for a gain with AGREEMENT
    """
    z = min(FASTEST, max(-1.0, gain / (SURE * error)))
    if gain > error and agreement >= AGREEMENT:
        z = FASTEST
    return min(budget, max(LEAST_RADIUS * budget, radius * GROWTH**z))
