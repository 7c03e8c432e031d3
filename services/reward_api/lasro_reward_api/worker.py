"""Scoring queued groups in the background, inside the API process or in a process of its own."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from lasro import wire
from lasro.errors import LasroError, StorageError, UnreachableError
from lasro.redis_store.group_queue import Claim, GroupQueue
from lasro.wire import RewardScore, ScoredItem, Status
from lasro_reward_api.scoring import Scorer

log = logging.getLogger("lasro.reward_api")
BLOCK_MS = 1000
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


async def score_groups(
    queue: GroupQueue, scorer: Scorer, consumer: str, groups_at_once: int, stale_after_s: float
) -> None:
    """Claim, score and finish groups until cancelled; `consumer` is this worker's name among all.

    A group is only gone from the queue once its scores are stored: cancelled or killed before that, it is scored
    again by whoever claims it next.
    """
    running: dict[asyncio.Task[None], Claim] = {}
    beats = asyncio.create_task(_heartbeat(queue, consumer, running, stale_after_s / 3))
    pause_s = FIRST_PAUSE_S
    try:
        while True:
            if len(running) >= groups_at_once:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                free = groups_at_once - len(running)
                claims = await queue.claim(
                    consumer, free, min(BLOCK_MS, int(stale_after_s * 500)), int(stale_after_s * 1000)
                )
                pause_s = FIRST_PAUSE_S
            except (UnreachableError, StorageError) as error:
                log.warning("scoring waits %.1f s: %s", pause_s, error)
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                continue
            held = {claim.entry_id for claim in running.values()}
            for claim in claims:
                if claim.entry_id not in held:
                    task = asyncio.create_task(score_claim(queue, scorer, claim))
                    running[task] = claim
                    task.add_done_callback(running.pop)
    finally:
        tasks = [beats, *running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(UnreachableError, StorageError):
            await queue.leave(consumer)


async def _heartbeat(
    queue: GroupQueue, consumer: str, running: dict[asyncio.Task[None], Claim], interval_s: float
) -> None:
    while True:
        await asyncio.sleep(interval_s)
        # Missed beats cost at worst a second scoring, which `finish` then ignores.
        with suppress(UnreachableError, StorageError):
            await queue.keep(consumer, [claim.entry_id for claim in running.values()])


async def score_claim(queue: GroupQueue, scorer: Scorer, claim: Claim) -> None:
    """Score one group and deliver it. Where Redis fails it stays in the queue and is claimed again later."""
    submission = claim.submission
    request = wire.ScoreRequest(
        prompts=[submission.prompt] * len(submission.images),
        images=submission.images,
        rewards=submission.rewards,
        metadata=None if submission.metadata is None else [submission.metadata] * len(submission.images),
    )
    try:
        items = (await scorer.score(request, lambda calls: queue.spend(claim, calls))).items
    except (UnreachableError, StorageError) as error:
        log.warning("group %s of run %s is scored later: %s", submission.group_id, claim.run, error)
        return
    except LasroError as error:
        items = _unscored(submission, str(error))
    except Exception as error:  # the boundary of one group: a bug met there must not stop the others
        log.exception("group %s of run %s cannot be scored", submission.group_id, claim.run)
        items = _unscored(submission, f"internal error ({type(error).__name__}); see the service's log")
    try:
        await queue.finish(claim, items)
    except (UnreachableError, StorageError) as error:
        log.warning("group %s of run %s is finished later: %s", submission.group_id, claim.run, error)


def _unscored(submission: wire.GroupSubmission, error: str) -> list[ScoredItem]:
    score = RewardScore(score=None, status=Status.UNAVAILABLE, error=error, attempts=0)
    scores = dict.fromkeys(submission.rewards, score)
    return [ScoredItem(scores=scores, total=None) for _ in submission.images]
