"""Scoring queued groups: the loop of the API process and of each `lasro worker`."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from lasro import wire
from lasro.errors import LasroError, StorageError, UnreachableError
from lasro.redis_store.group_queue import Claim, GroupQueue
from lasro.service.logs import set_request_id
from lasro.wire import RewardValue, ScoredItem, Status
from lasro_reward_api.deadline import Caller, Deadline
from lasro_reward_api.scoring import Scorer

log = logging.getLogger("lasro.reward_api")
BLOCK_MS = 1000
PAUSE_S = 0.5
LEAVE_S = 1.5
"""Seconds for giving claims back at the end. Where Redis is slower, others take them over once they are stale."""
GROUP_TIMEOUT_S = 3600.0


async def score_groups(
    queue: GroupQueue,
    scorer: Scorer,
    consumer: str,
    groups_at_once: int,
    stale_after_s: float,
    group_timeout_s: float = GROUP_TIMEOUT_S,
) -> None:
    """Claim, score and finish groups until cancelled; `consumer` is this worker's name among all.

    A group is only gone from the queue once its scores are stored: cancelled or killed before that, it is scored
    again by whoever claims it next. What is not scored within `group_timeout_s` gets no scores.
    """
    running: dict[asyncio.Task[None], Claim] = {}
    beats = asyncio.create_task(_heartbeat(queue, consumer, running, stale_after_s / 3))
    try:
        while not is_cancelled():
            free = groups_at_once - len(running)
            if free == 0:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                continue
            claims = await _claim(queue, consumer, free, stale_after_s)
            held = {claim.entry_id for claim in running.values()}
            for claim in claims:
                if claim.entry_id not in held:
                    task = asyncio.create_task(score_claim(queue, scorer, consumer, claim, group_timeout_s))
                    running[task] = claim
                    task.add_done_callback(running.pop)
    finally:
        tasks = [beats, *running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(UnreachableError, StorageError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await queue.leave(consumer)


def is_cancelled() -> bool:
    """Whether this task was asked to end.

    redis-py 8.1 now and then swallows a cancellation that comes while it waits for a reply; a loop around it that
    did not look would go on, and keep its service from stopping.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _claim(queue: GroupQueue, consumer: str, count: int, stale_after_s: float) -> list[Claim]:
    stale_ms = int(stale_after_s * 1000)
    try:
        return await queue.claim(consumer, count, min(BLOCK_MS, stale_ms // 2), stale_ms)
    except (UnreachableError, StorageError) as error:
        log.warning("scoring waits for Redis: %s", error)
        await asyncio.sleep(PAUSE_S)
        return []


async def _heartbeat(
    queue: GroupQueue, consumer: str, running: dict[asyncio.Task[None], Claim], interval_s: float
) -> None:
    while not is_cancelled():
        await asyncio.sleep(interval_s)
        # A missed beat costs at worst a second scoring, which `finish` ignores. A beat that hangs must not delay the
        # next one.
        with suppress(UnreachableError, StorageError, TimeoutError):
            async with asyncio.timeout(interval_s):
                lost = await queue.keep(consumer, [claim.entry_id for claim in running.values()])
            for task, claim in running.items():
                if claim.entry_id in lost:
                    log.info("group %s of run %s is no longer ours to score", claim.submission.group_id, claim.run)
                    task.cancel()


async def score_claim(queue: GroupQueue, scorer: Scorer, consumer: str, claim: Claim, timeout_s: float) -> None:
    """Score one group and deliver it. Where Redis fails it stays in the queue and is claimed again later."""
    submission = claim.submission
    try:
        set_request_id(submission.group_id)
        items = await _items(queue, scorer, claim, timeout_s)
    except (UnreachableError, StorageError) as error:
        log.warning("group %s of run %s is scored later: %s", submission.group_id, claim.run, error)
        with suppress(UnreachableError, StorageError):
            await queue.put_back(consumer, claim.entry_id)
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


async def _items(queue: GroupQueue, scorer: Scorer, claim: Claim, timeout_s: float) -> list[ScoredItem]:
    submission = claim.submission
    if submission.scores is not None:
        return _known(submission.scores, len(submission.stages))
    request = wire.ScoreRequest(
        prompts=[submission.prompt] * len(submission.images),
        images=submission.images,
        rewards=submission.rewards,
        metadata=None if submission.metadata is None else [submission.metadata] * len(submission.images),
    )
    caller = Caller(Deadline.after(timeout_s), submission.group_id)
    scored = await scorer.score(request, caller, lambda calls: queue.spend(claim, calls))
    return wire.ScoreReply.model_validate(scored).items


def _known(scores: dict[str, list[float | None]], count: int) -> list[ScoredItem]:
    """Rewards that came with their group, of version 0: no registered endpoint gave them here."""

    def score(value: float | None) -> RewardValue:
        if value is None:
            return RewardValue(score=None, status=Status.REJECTED, error="submitted as failed", attempts=0)
        return RewardValue(score=value, status=Status.OK, attempts=0)

    columns = {name: [score(value) for value in values] for name, values in scores.items()}
    return [ScoredItem(scores={name: column[i] for name, column in columns.items()}, total=None) for i in range(count)]


def _unscored(submission: wire.GroupSubmission, error: str) -> list[ScoredItem]:
    score = RewardValue(score=None, status=Status.UNAVAILABLE, error=error, attempts=0)
    scores = dict.fromkeys(submission.rewards, score)
    return [ScoredItem(scores=scores, total=None) for _ in submission.images]
