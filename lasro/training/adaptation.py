"""One adaptation of the surrogate: rank what is new, then train on all, and say how both went."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from lasro import wire
from lasro.errors import BusyError
from lasro.functional.reward_totals import scale_of
from lasro.training.replay_buffer import ReplayBuffer
from lasro.training.surrogate_trainer import StepResult, SurrogateTrainer, paces


def adapt(
    trainer: SurrogateTrainer, replay: ReplayBuffer, request: wire.AdaptRequest, stopped: Callable[[], bool]
) -> wire.AdaptStatistics:
    """Rank the new groups before training on them, then train for `request.steps` steps.

    Groups made more than `max_policy_lag` generator updates before the newest are trained on, but are not fresh.
    Raises NonFiniteError, and BusyError once `stopped` returns True; it is called before each step.
    """
    started = time.perf_counter()
    new_groups = replay.named(request.new_groups)
    ranker = trainer.ranker(replay)
    oldest = replay.policy_version - trainer.settings.max_policy_lag
    fresh_groups = [group for group in new_groups if group.policy_version >= oldest]
    fresh = trainer.rank(fresh_groups, ranker)
    results: list[StepResult] = []
    for pace in paces(request.steps, request.rate, request.settle):
        if stopped():
            raise BusyError("the run is being closed and the adaptation was not finished; ask again")
        result = trainer.step(replay, pace)
        if result is not None:
            results.append(result)
    trainer.measure(fresh, replay.held_out(), ranker)
    ranked_pairs = [len(ranker.pairs(group)[0]) for group in new_groups]
    return wire.AdaptStatistics(
        loss=float(np.mean([result.loss for result in results])) if results else None,
        pair_accuracy=float(np.mean([result.accuracy for result in results])) if results else None,
        fresh_pair_accuracy=fresh.accuracy,
        held_out_pair_accuracy=trainer.metrics.held_out_accuracy,
        reward_gap=fresh.gap,
        accuracy_by_kind=dict(fresh.by_kind),
        pairs=sum(result.pairs for result in results),
        constant_groups=ranked_pairs.count(0),
        ranked_pairs=sum(ranked_pairs),
        tied_pairs=sum(ranker.count_ties(group) for group in new_groups),
        spread=scale_of(replay.totals(trainer.objective, ranker.scales)).deviation,
        tie_margin=ranker.margin,
        failed_samples=sum(int(ranker.values(group).isnan().sum()) for group in new_groups),
        scales=dict(ranker.scales),
        stale_groups=len(new_groups) - len(fresh_groups),
        duration_s=time.perf_counter() - started,
    )
