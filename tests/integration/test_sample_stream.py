"""The trainer's side of the sample stream, against a real server."""

from __future__ import annotations

import hashlib
import select
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from lasro import wire
from lasro.errors import UnreachableError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect
from lasro.redis_store.dead_letters import dead_letters, drop, retry
from lasro.redis_store.sample_stream import SampleStream

RUN = "stream-tests"


def sample(index: int, latents: bytes = b"x") -> wire.ScoredGroup:
    return wire.ScoredGroup(
        group_id=f"g{index}",
        round=0,
        index=index,
        prompt="p",
        policy_version=0,
        stages=[1, 2],
        rewards={"r": [0.5, None]},
        versions={"r": 1},
        latents=latents,
    )


def deliver(client: redis.Redis, *indices: int) -> None:
    for index in indices:
        client.xadd(keys.samples(RUN), {"sample": wire.to_msgpack(sample(index))})


def deliver_as_release_0_1(client: redis.Redis, index: int) -> None:
    """As it was written before `scores` of a group became `rewards`."""
    fields = {"scores" if name == "rewards" else name: value for name, value in sample(index).model_dump().items()}
    client.xadd(keys.samples(RUN), {"sample": wire.to_msgpack(fields)})


def _all(client: redis.Redis) -> Any:
    return client.xrange(keys.samples(RUN))


def indices(entries: list[tuple[str, wire.ScoredGroup]]) -> list[int]:
    return [found.index for _, found in entries]


class CuttingProxy:
    """Passes a unix socket through, and drops one reply together with its connection when told to."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.path, self._upstream = str(folder / "proxy.sock"), upstream
        self.cut_next_reply = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(near,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(self._upstream)
            ends = {near: far, far: near}
            while True:
                for source in select.select(list(ends), [], [])[0]:
                    data = source.recv(1 << 16)
                    if source is far and self.cut_next_reply:
                        self.cut_next_reply = False
                        return
                    if not data:
                        return
                    ends[source].sendall(data)


def test_what_release_0_1_left_on_the_stream_is_read(redis_client: redis.Redis) -> None:
    """Bug: after an upgrade the groups that wait on the stream are dead-lettered for their field `scores`."""
    deliver_as_release_0_1(redis_client, 0)
    deliver(redis_client, 1)
    read = SampleStream(redis_client, RUN).read(9)
    assert [found for _, found in read] == [sample(0), sample(1)]
    assert dead_letters(redis_client) == []


def test_a_new_reader_gets_what_the_last_one_left_unacknowledged(redis_client: redis.Redis) -> None:
    """Bug: a trainer killed between reading and its checkpoint loses the samples it had read."""
    stream = SampleStream(redis_client, RUN)
    deliver(redis_client, 0, 1, 2, 3)
    first = stream.read(2)
    stream.ack([first[0][0]])
    assert indices(first) == [0, 1]

    after_restart = SampleStream(redis_client, RUN)
    assert indices(after_restart.read(10)) == [1]
    assert indices(after_restart.read(10)) == [2, 3]
    assert after_restart.read(10) == []


def test_lag_counts_what_was_never_read(redis_client: redis.Redis) -> None:
    """Bug: lag counts pending or acknowledged entries, so a run never looks caught up."""
    stream = SampleStream(redis_client, RUN)
    assert stream.lag() == 0
    deliver(redis_client, 0, 1, 2)
    assert stream.lag() == 3
    entries = stream.read(2)
    assert indices(entries) == [0, 1]
    assert stream.lag() == 1
    stream.ack([entry_id for entry_id, _ in entries])
    assert stream.lag() == 1
    assert redis_client.xlen(keys.samples(RUN)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"sample": b"\xc1 junk"},
        {"blob": b"0" * 64},
        {"blob": b"\xff"},
        {"other": b"x"},
        {"sample": wire.to_msgpack(sample(9))[:-1]},
        {"sample": msgpack.packb({**sample(9).model_dump(), "schema_version": 2})},
        {"sample": msgpack.packb({**sample(9).model_dump(), "scores": {"r": [float("nan"), None]}})},
        {f"f{i}": "x" for i in range(9000)},
        {"reason": "theirs", "entry": "0-1"},
    ],
)
def test_unreadable_entries_are_dead_lettered_and_the_stream_goes_on(
    redis_client: redis.Redis, fields: dict[Any, Any]
) -> None:
    """Bug: one corrupt entry stops the trainer for ever, or vanishes without a trace."""
    stream = SampleStream(redis_client, RUN)
    deliver(redis_client, 0)
    redis_client.xadd(keys.samples(RUN), fields)
    deliver(redis_client, 1)
    assert indices(stream.read(10)) == [0, 1]
    found: Any = redis_client.xrange(keys.dead_samples(RUN))
    ((_, dead),) = found
    assert dead[b"reason"]
    assert SampleStream(redis_client, RUN).read(10) != []
    assert redis_client.xlen(keys.samples(RUN)) == 2


def test_a_sample_that_was_dead_lettered_is_read_after_a_retry_and_gone_after_a_drop(redis_client: redis.Redis) -> None:
    """Bug: a sample that an older trainer could not read is lost for the newer one; or its blob stays for ever."""
    stream = SampleStream(redis_client, RUN)
    redis_client.sadd(keys.RUNS, RUN)
    deliver(redis_client, 0)
    body = wire.to_msgpack(sample(1))
    digest = hashlib.sha256(body).hexdigest()
    redis_client.set(keys.blob(RUN, digest), body)
    redis_client.sadd(keys.blobs(RUN), digest)
    redis_client.xadd(keys.samples(RUN), {"blob": digest})
    for entry_id, _ in stream.read(5):
        stream.dead_letter(entry_id, "of no use")
    first, second = dead_letters(redis_client)
    assert (first.kind, first.run, first.reason) == ("sample", RUN, "of no use")
    assert retry(redis_client, first)
    assert indices(stream.read(5)) == [0]
    assert retry(redis_client, second)
    ((entry_id, found),) = stream.read(5)
    assert found.index == 1
    stream.dead_letter(entry_id, "of no use again")
    (last,) = dead_letters(redis_client)
    drop(redis_client, last)
    assert dead_letters(redis_client) == []
    assert redis_client.exists(keys.blob(RUN, digest)) == 0
    assert redis_client.scard(keys.blobs(RUN)) == 0


def test_what_another_group_of_readers_needs_is_kept(redis_client: redis.Redis) -> None:
    """Bug: the trainer's acknowledgement removes samples that a second reader has not seen."""
    stream = SampleStream(redis_client, RUN)
    deliver(redis_client, 0, 1, 2, 3)
    redis_client.xgroup_create(keys.samples(RUN), "archive", id="0")
    ids = [entry_id for entry_id, _ in stream.read(10)]
    stream.ack([ids[0], ids[1], ids[3]])
    assert redis_client.xlen(keys.samples(RUN)) == 4
    reply: Any = redis_client.xreadgroup("archive", "a", {keys.samples(RUN): ">"}, count=3)
    redis_client.xack(keys.samples(RUN), "archive", *ids[:3])
    assert reply
    stream.ack([ids[3]])
    assert [entry_id.decode() for entry_id, _ in _all(redis_client)] == [ids[2], ids[3]]
    stream.ack([ids[2]])
    assert [entry_id.decode() for entry_id, _ in _all(redis_client)] == [ids[3]]


def test_acknowledging_what_this_reader_never_saw_frees_its_blob(redis_client: redis.Redis) -> None:
    """Bug: a trainer that acknowledges by the ids of its checkpoint leaves the blobs behind."""
    body = wire.to_msgpack(sample(0))
    digest = hashlib.sha256(body).hexdigest()
    redis_client.set(keys.blob(RUN, digest), body)
    redis_client.sadd(keys.blobs(RUN), digest)
    redis_client.xadd(keys.samples(RUN), {"blob": digest})
    ((entry_id, _),) = SampleStream(redis_client, RUN).read(5)
    SampleStream(redis_client, RUN).ack([entry_id, "1-1"])
    assert redis_client.exists(keys.blob(RUN, digest)) == 0
    assert redis_client.xlen(keys.samples(RUN)) == 0


def test_acknowledging_for_a_deleted_run_does_nothing(redis_client: redis.Redis) -> None:
    """Bug: the last acknowledgement of a run that was just removed fails, or makes its keys again."""
    stream = SampleStream(redis_client, RUN)
    deliver(redis_client, 0)
    ((entry_id, _),) = stream.read(5)
    stream.delete()
    stream.ack([entry_id])
    assert redis_client.keys("*") == []


def test_a_blob_that_changed_is_not_taken(redis_client: redis.Redis) -> None:
    """Bug: bytes under a digest are believed without looking, so corruption trains the surrogate."""
    stream = SampleStream(redis_client, RUN)
    body = wire.to_msgpack(sample(0))
    digest = hashlib.sha256(body).hexdigest()
    redis_client.set(keys.blob(RUN, digest), wire.to_msgpack(sample(7)))
    redis_client.xadd(keys.samples(RUN), {"blob": digest})
    assert stream.read(5) == []
    assert redis_client.xlen(keys.dead_samples(RUN)) == 1


def test_a_lost_reply_loses_no_sample_and_repeats_none(redis_url: str, redis_client: redis.Redis) -> None:
    """Bug: entries in a reply that never arrived stay pending for ever; or a re-read gives the others twice."""
    with tempfile.TemporaryDirectory(prefix="lasro-") as folder:
        proxy = CuttingProxy(Path(folder), redis_url.removeprefix("unix://"))
        with connect(f"unix://{proxy.path}") as through_proxy:
            stream = SampleStream(through_proxy, RUN)
            deliver(redis_client, 0, 1, 2)
            assert indices(stream.read(1)) == [0]
            proxy.cut_next_reply = True
            with pytest.raises(UnreachableError):
                stream.read(2)
            assert indices(stream.read(5)) == [1, 2]
            assert stream.read(5) == []
        proxy.close()


def test_delete_removes_every_key_of_the_run(redis_client: redis.Redis) -> None:
    """Bug: a removed run leaves keys behind, and its name is unusable."""
    stream = SampleStream(redis_client, RUN)
    deliver(redis_client, 0)
    redis_client.hset(keys.group(RUN, "g0"), "state", "scored")
    redis_client.sadd(keys.groups(RUN), "g0")
    redis_client.set(keys.blob(RUN, "ab"), b"x")
    redis_client.sadd(keys.blobs(RUN), "ab")
    redis_client.hset(keys.calls(RUN), "spent", 1)
    stream.delete()
    assert redis_client.keys("*") == []
    assert stream.read(1) == []
    deliver(redis_client, 5)
    assert indices(stream.read(1)) == [5]


def test_a_stream_that_redis_lost_is_read_from_its_start(
    redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: Redis came back empty with its clock set back, a new entry had the id of an old one, and the trainer took it
    for the old one: its group was waited for until the run gave up."""
    stream, key = SampleStream(redis_client, "emptied"), keys.samples("emptied")
    redis_client.xadd(key, {"sample": wire.to_msgpack(sample(0))}, id="5-0")
    assert indices(stream.read(5)) == [0]
    redis_client.flushall()
    redis_client.xadd(key, {"sample": wire.to_msgpack(sample(1))}, id="5-0")
    assert indices(stream.read(5)) == [1]
    assert "Redis lost the stream of samples" in caplog.text


def test_an_entry_id_that_redis_gave_twice_is_read_twice(redis_client: redis.Redis) -> None:
    """Bug: with its clock set back, Redis gives ids again that it lost in a power cut, and the trainer took the second
    entry for the first: its group never arrived."""
    stream, key = SampleStream(redis_client, "twice"), keys.samples("twice")
    for index in range(2):
        redis_client.delete(key)
        redis_client.xadd(key, {"sample": wire.to_msgpack(sample(index)), "group": f"g{index}"}, id="5-0")
        redis_client.xgroup_create(key, "trainer", id="0")
        assert indices(stream.read(5)) == [index]
        stream._replay_from = b"0-0"
        assert stream.read(5) == []
    stream.ack(["5-0"])
    assert redis_client.xlen(key) == 0
