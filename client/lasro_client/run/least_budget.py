"""Budgets too small for a run from nothing to come to anything: said before they are spent. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lasro.config import RunSettings
from lasro.errors import BudgetError
from lasro_client.run.cost import FEWEST_WORTH, fewest_calls
from lasro_client.run.train_schedule import most_ranking_rounds


def check_calls(config: RunSettings, repeats: Mapping[str, int]) -> None:
    """Raise BudgetError where `budget.max_reward_calls` is below one round of ranking and a few of training.

    `repeats` of each reward, as it is registered.
    """
    limit = config.budget.max_reward_calls
    if limit is None or not finds_out_itself(config):
        return
    least = fewest_calls(config.train, sum(repeats.values()))
    if limit < least:
        raise BudgetError(
            f"budget.max_reward_calls: got {limit:,}, expected at least {least:,}, for a round of ranking and "
            f"{FEWEST_WORTH - 1} of training; raise it, or lower train.prompts_per_round or train.seeds_per_prompt"
        )


def check_minutes(config: RunSettings, elapsed_s: float, round_s: float) -> None:
    """Raise BudgetError where `budget.max_minutes` ends before as many rounds, by the pace of the first of them.

    `elapsed_s` of the run with that round, `round_s` of the round alone.
    """
    limit = config.budget.max_minutes
    if limit is None or not finds_out_itself(config):
        return
    rounds = min(FEWEST_WORTH, config.train.max_rounds)
    least = math.ceil((elapsed_s + (rounds - 1) * round_s) / 6) / 10
    if limit < least:
        raise BudgetError(
            f"budget.max_minutes: got {limit:g}, expected at least {least:g}, for a round of ranking and {rounds - 1} "
            f"of training at {round_s:.2g} s each, as the first one took; raise it, and the same command goes on from "
            "there, or lower train.prompts_per_round or train.seeds_per_prompt in another folder (--out)"
        )


def finds_out_itself(config: RunSettings) -> bool:
    """Whether the run begins with rounds of ranking alone, as many as it takes."""
    return most_ranking_rounds(config.train) > 0
