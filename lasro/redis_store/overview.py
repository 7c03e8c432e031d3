"""What waits where, at one moment: the work stream with its workers, and the sample stream of each run."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import redis

from lasro.redis_store import keys, sample_stream, work_stream
from lasro.redis_store.connection import redis_errors
from lasro.redis_store.runs import run_names


class WorkerFigures(NamedTuple):
    """`idle_s`: since it last spoke; claims of a name that is silent for longer than a few seconds are taken over."""

    name: str
    claims: int
    idle_s: float


class WorkFigures(NamedTuple):
    """Groups of all runs that are not scored: not claimed yet, claimed, dead-lettered; and the age of the oldest."""

    waiting: int
    claimed: int
    dead: int
    oldest_s: float | None
    workers: list[WorkerFigures]


class RunFigures(NamedTuple):
    """`queued` groups are to be scored, `unread` are scored and `unacknowledged` with the trainer."""

    run: str
    groups: int
    queued: int
    unread: int
    unacknowledged: int
    dead_samples: int
    reward_calls: int


def work_figures(client: redis.Redis) -> WorkFigures:
    """Raises UnreachableError or StorageError."""
    with redis_errors():
        length, dead = int(_any(client.xlen(keys.WORK))), int(_any(client.xlen(keys.DEAD_WORK)))
        claimed, workers = _pending(client, keys.WORK, work_stream.GROUP), []
        if claimed is not None:
            workers = [
                WorkerFigures(found["name"].decode(), found["pending"], found["idle"] / 1000)
                for found in _any(client.xinfo_consumers(keys.WORK, work_stream.GROUP))
            ]
        oldest: Any = client.xrange(keys.WORK, count=1)
        now_s, _ = _any(client.time())
    age_s = max(0.0, now_s - int(oldest[0][0].partition(b"-")[0]) / 1000) if oldest else None
    return WorkFigures(length - (claimed or 0), claimed or 0, dead, age_s, workers)


def run_figures(client: redis.Redis) -> list[RunFigures]:
    """By name. Raises UnreachableError or StorageError."""
    with redis_errors():
        queued = Counter(fields.get(b"run", b"").decode("utf-8", "replace") for _, fields in _entries(client))
        return [_of_run(client, run, queued[run]) for run in run_names(client)]


def _of_run(client: redis.Redis, run: str, queued: int) -> RunFigures:
    with client.pipeline(transaction=False) as pipeline:
        pipeline.scard(keys.groups(run))
        pipeline.xlen(keys.samples(run))
        pipeline.xlen(keys.dead_samples(run))
        pipeline.hget(keys.calls(run), "spent")
        groups, samples, dead, spent = pipeline.execute()
    pending = _pending(client, keys.samples(run), sample_stream.GROUP) or 0
    return RunFigures(run, groups, queued, samples - pending, pending, dead, int(spent or 0))


def _entries(client: redis.Redis) -> Any:
    return client.xrange(keys.WORK)


def _pending(client: redis.Redis, stream: str, group: str) -> int | None:
    """Entries that the group has read and not acknowledged; None where there is no such group yet."""
    try:
        return int(_any(client.xpending(stream, group))["pending"])
    except redis.ResponseError as error:
        if not str(error).startswith("NOGROUP"):
            raise
        return None


def _any(reply: Any) -> Any:
    """redis-py types every reply as one that may have to be awaited."""
    return reply
