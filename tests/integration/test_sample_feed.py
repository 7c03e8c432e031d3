"""What the trainer's feed acknowledges, and when, with a Redis that forgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from lasro import wire
from lasro.config import ModelSettings, SurrogateRun
from lasro.redis_store import keys
from lasro.redis_store.connection import connect
from lasro.redis_store.sample_stream import SampleStream
from lasro_surrogate_trainer.sample_feed import GroupBuffer, SampleFeed

SHAPE = (4, 8, 8)
CONFIG = SurrogateRun(model=ModelSettings(path="unused"), weights={"mean": 1.0})


def sample(name: str) -> wire.ScoredGroup:
    return wire.ScoredGroup(
        group_id=name,
        round=0,
        index=0,
        prompt="a red star",
        policy_version=0,
        stages=[1, 2],
        rewards={"mean": [0.1, 0.2]},
        versions={"mean": 1},
        latents=wire.pack_tensors({"latents": np.zeros((2, *SHAPE), np.float32)}),
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def feeding(stream: SampleStream, run: str, buffer: GroupBuffer) -> Iterator[SampleFeed]:
    """A feed at work, stopped whatever the test finds: else it reads on, from a Redis that is gone, in later tests."""
    feed = SampleFeed(stream, run, buffer, lambda: None)
    feed.start()
    try:
        yield feed
    finally:
        feed.stop()


@pytest.fixture
def buffer() -> GroupBuffer:
    return GroupBuffer(CONFIG, SHAPE)


def test_a_group_delivered_again_after_a_power_cut_is_kept_until_it_is_on_disk(redis_url, buffer):
    """Guards against groups lost by `make chaos`: Redis forgot the entry that was held, and its twin was taken for
    done while the group was in memory only; a trainer killed next had neither, and nobody posted it again."""
    with connect(redis_url) as client:
        run, key = "power-cut", keys.samples("power-cut")
        with feeding(SampleStream(client, run), run, buffer):
            first = client.xadd(key, {"sample": wire.to_msgpack(sample("a"))})
            until(lambda: buffer.replay.waiting_groups == 1)
            client.xack(key, "trainer", first)
            client.xdel(key, first)
            client.xadd(key, {"sample": wire.to_msgpack(sample("a"))})
            client.xadd(key, {"sample": wire.to_msgpack(sample("b"))})
            until(lambda: buffer.replay.waiting_groups == 2)

        after = GroupBuffer(CONFIG, SHAPE)
        with feeding(SampleStream(client, run), run, after) as feed:
            until(lambda: after.replay.waiting_groups == 2)
            after.saved(after.replay.activate(["a", "b"]))
            feed.release()
            until(lambda: client.xlen(key) == 0)


def test_a_group_on_disk_is_acknowledged_when_it_comes_again(redis_url, buffer):
    """Guards against a stream that keeps what was delivered twice for as long as the trainer lives."""
    with connect(redis_url) as client:
        run, key = "twice", keys.samples("twice")
        with feeding(SampleStream(client, run), run, buffer) as feed:
            client.xadd(key, {"sample": wire.to_msgpack(sample("a"))})
            client.xadd(key, {"sample": wire.to_msgpack(sample("a"))})
            # The feed makes the consumer group when it first reads: before that Redis knows of none to ask for.
            until(lambda: buffer.replay.waiting_groups == 1)
            until(lambda: client.xpending(key, "trainer")["pending"] == 2 and buffer.replay.waiting_groups == 1)
            buffer.saved(buffer.replay.activate(["a"]))
            feed.release()
            until(lambda: client.xlen(key) == 0)
            client.xadd(key, {"sample": wire.to_msgpack(sample("a"))})
            until(lambda: client.xlen(key) == 0)
