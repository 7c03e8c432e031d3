"""Is a run worth its first round, and what did that say: budgets that are too small, a reward with nothing to learn."""

from __future__ import annotations

import time
from collections.abc import Callable

from lasro_client.evaluation.result import Evaluation
from lasro_client.run.alternation import Alternation
from lasro_client.run.folder import RunFolder
from lasro_client.run.least_budget import check_calls, check_minutes, finds_out_itself
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.start_audit import StartAudit
from lasro_client.services.reward_client import RewardClient


def check_budget(folder: RunFolder, client: RewardClient | None = None) -> None:
    """Refuse a new run whose reward calls lead nowhere, by its settings or, once there is a client, by what is
    registered. Raises BudgetError."""
    if not folder.has_checkpoint:
        rewards = folder.config.rewards
        check_calls(
            folder.config,
            {each.name: each.repeats or 1 if client is None else client.reward(each.name).repeats for each in rewards},
        )


def judge_first_round(alternation: Alternation, audit: StartAudit, before: Evaluation) -> Callable[[RoundRecord], None]:
    """To be made when the rounds begin and called after each: ends a run that by its first leads nowhere.

    Raises BudgetError where its minutes are too few; it can be resumed with more.
    """
    started = time.monotonic()
    peers, config, sampler = alternation.feedback.peers, alternation.config, alternation.sampler
    if finds_out_itself(config) and alternation.progress.round == 0:
        sampler.on_scored = audit.see

    def judge(record: RoundRecord) -> None:
        if sampler.on_scored is None:
            return
        round_s, sampler.on_scored = time.monotonic() - started, None
        why = audit.after_first_round(record, before)
        if why is not None:
            alternation.give_up(why)
        else:
            peers.on_main_and_broadcast(lambda: check_minutes(config, record.elapsed_s, round_s), None)

    return judge
