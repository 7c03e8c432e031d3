"""How much of a reward may be noise, and what to do about it: for an audit before a run and at its start."""

from __future__ import annotations

from lasro_client.evaluation.reward_spread import Components, repeats_for

NO_SIGNAL = 0.2
"""Of the variance within a group: 65 of 100 pairs are ranked right, so it takes 11 times as many to learn the same, and
a reward drawn by lot may seem to have as much over 8 prompts of 12 images."""
LITTLE_SIGNAL = 0.5
"""75 of 100 pairs are ranked right: four times as many pairs."""
GOOD_SIGNAL = 0.8
"""85 of 100: twice as many. What `repeats` is suggested for."""
MOST_REPEATS = 32


def less_noise(reward: str, repeats: int, within: Components) -> str:
    """What to do about a reward that was measured with so many repeats, and these variances."""
    wanted = repeats_for(GOOD_SIGNAL, within)
    total = None if wanted is None else wanted * repeats
    if total is None or total > MOST_REPEATS:
        return f"make it depend on the image: averaging {MOST_REPEATS} repeats, the most there are, would not be enough"
    command = f"lasro rewards add {reward} URL --replace --repeats {total}"
    return f"remove its noise, or set repeats = {total} (`{command}`), for {wanted} times the calls"
