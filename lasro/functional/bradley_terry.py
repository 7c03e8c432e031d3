"""Bradley-Terry ranking of samples by a reward: pure functions.

    P(w beats l | c) = sigma(R_psi(z_w, c) - R_psi(z_l, c))

Shape legend: N samples of one prompt, P ranked pairs. Source: LaSRO (arXiv 2411.15247), stage 1.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from lasro.num_steps import JSON_NAMES


def ranked_pairs(
    rewards_N: Tensor, num_steps_N: Tensor, margin: float, within_num_steps: bool = False
) -> tuple[Tensor, Tensor]:
    """Indices (winners_P, losers_P), int64, of all pairs of one prompt whose rewards differ by more than `margin`.

    `num_steps_N` is the number of denoising steps that made each sample; with `within_num_steps` only samples
    of as many steps are paired. A reward of NaN stands for a failed one and is in no pair.
    """
    better_NN = rewards_N[:, None] - rewards_N[None, :] > margin
    if within_num_steps:
        better_NN &= num_steps_N[:, None] == num_steps_N[None, :]
    winners_P, losers_P = better_NN.nonzero(as_tuple=True)
    return winners_P, losers_P


def count_ties(rewards_N: Tensor, num_steps_N: Tensor, margin: float, within_num_steps: bool = False) -> int:
    """Pairs that `ranked_pairs` leaves out although both rewards are known: they differ by no more than `margin`."""
    tied_NN = (rewards_N[:, None] - rewards_N[None, :]).abs() <= margin  # False where one is NaN
    if within_num_steps:
        tied_NN &= num_steps_N[:, None] == num_steps_N[None, :]
    return int(tied_NN.triu(diagonal=1).sum())


def bradley_terry_loss(scores_N: Tensor, winners_P: Tensor, losers_P: Tensor) -> Tensor:
    """-mean log sigma(s_w - s_l) over the pairs; zero, with a gradient of zero, where there are none."""
    if len(winners_P) == 0:
        return scores_N.sum() * 0
    return -logsigmoid(scores_N[winners_P] - scores_N[losers_P]).mean()


def pair_accuracy(scores_N: Tensor, winners_P: Tensor, losers_P: Tensor) -> float | None:
    """Share of pairs ranked right; equal scores count half. None where there are no pairs."""
    if len(winners_P) == 0:
        return None
    difference_P = scores_N[winners_P] - scores_N[losers_P]
    return ((difference_P > 0).double() + 0.5 * (difference_P == 0).double()).mean().item()


def pair_kinds(
    num_steps_N: Tensor, seeds_N: Tensor, draws_N: Tensor, reference_N: Tensor, winners_P: Tensor, losers_P: Tensor
) -> dict[str, Tensor]:
    """Which pairs are of which kind, bool [P] by name: kinds differ in what the two samples of a pair share.

    `seeds_N` int64 says which x_tau0 made a sample, `draws_N` int64 which later noises of those given that x_tau0,
    `reference_N` bool whether the other policy drew it. Own against reference of the same noise is a kind for each
    number of steps. A pair is of one kind, or of none: own against reference of other noise.
    """
    num_steps, seeds, draws, reference = (
        (values[winners_P], values[losers_P]) for values in (num_steps_N, seeds_N, draws_N, reference_N)
    )
    same_policy_P, same_seed_P = reference[0] == reference[1], seeds[0] == seeds[1]
    same_steps_P = num_steps[0] == num_steps[1]
    same_noise_P = same_seed_P & same_steps_P & (draws[0] == draws[1])
    return {
        "across_seeds": same_policy_P & ~same_seed_P,
        "same_z1": same_policy_P & same_seed_P & same_steps_P,
        "between_steps": same_policy_P & same_seed_P & ~same_steps_P,
        **{
            f"reference_{JSON_NAMES[n]}": ~same_policy_P & same_noise_P & (num_steps[0] == n)
            for n in num_steps_N.unique().tolist()
        },
    }


def rank_correlation(scores_N: Tensor, rewards_N: Tensor) -> float | None:
    """Spearman's correlation with tied ranks averaged; None for fewer than three samples or a constant side."""
    if len(scores_N) < 3:
        return None
    a, b = (_centred_ranks(values.double()) for values in (scores_N, rewards_N))
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return None if scale == 0 else ((a * b).sum() / scale).item()


def _centred_ranks(values_N: Tensor) -> Tensor:
    less = (values_N[:, None] > values_N[None, :]).double().sum(1)
    equal = (values_N[:, None] == values_N[None, :]).double().sum(1)
    ranks = less + (equal - 1) / 2
    return ranks - ranks.mean()
