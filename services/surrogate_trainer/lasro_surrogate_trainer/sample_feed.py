"""A thread that reads scored groups from Redis into the run's replay buffer."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import LasroError, StorageError, TimeoutExceededError, UnreachableError, WireError
from lasro.redis_store.sample_stream import SampleStream
from lasro.training.replay_buffer import ReplayBuffer, ReplayGroup, group_from_sample

log = logging.getLogger("lasro.trainer")
READ_COUNT = 64
BLOCK_MS = 500
RETRY_S = 1.0
KEPT_REFUSALS = 1024


class GroupBuffer:
    """The groups that arrived for a run: a replay buffer, the groups not on disk yet, and the errors of refused ones.

    The feed's thread adds groups to it, the training thread trains on them.
    """

    def __init__(self, config: SurrogateRun, latent_shape: tuple[int, int, int]) -> None:
        self._settings, self._objective, self._latent_shape = config.surrogate, config.reward_objective, latent_shape
        self._lock = threading.Lock()
        self._unsaved: dict[str, wire.ScoredGroup] = {}
        self._expected: Sequence[str] = ()
        self._refused: OrderedDict[str, LasroError] = OrderedDict()
        self.replay = self.empty_replay()

    def empty_replay(self) -> ReplayBuffer:
        """A new replay buffer with the run's settings."""
        settings = self._settings
        return ReplayBuffer(settings.buffer_groups, settings.recent_groups, settings.held_out_share)

    def group(self, sample: wire.ScoredGroup) -> ReplayGroup:
        """A checked group; raises WireError or NonFiniteError for one that must not be trained on."""
        return group_from_sample(sample, self._objective, self._latent_shape)

    def start_from(self, replay: ReplayBuffer) -> None:
        """Continue with this replay buffer, restored from disk. Groups that are not on disk wait in it again."""
        with self._lock:
            self._unsaved = {name: s for name, s in self._unsaved.items() if replay.add(self.group(s))}
            self.replay = replay

    def unsaved(self, group_ids: Iterable[str]) -> list[wire.ScoredGroup]:
        """The named groups that are not on disk yet, as they arrived."""
        with self._lock:
            return [self._unsaved[name] for name in group_ids if name in self._unsaved]

    def saved(self, group_ids: Iterable[str]) -> None:
        """Note that these groups are on disk."""
        with self._lock:
            for name in group_ids:
                self._unsaved.pop(name, None)

    def is_saved(self, group_id: str) -> bool:
        """Whether an accepted group is on disk."""
        return group_id not in self._unsaved

    def expect(self, group_ids: Sequence[str]) -> None:
        """Keep `has_room` true until these groups have arrived, however many others wait: a request needs them."""
        self._expected = group_ids

    def has_room(self) -> bool:
        """Whether to read more groups: no while as many as the buffer holds wait for an adapt request."""
        return self.replay.waiting_groups < self.replay.buffer_groups or bool(self.replay.missing(self._expected))

    def accept(self, sample: wire.ScoredGroup) -> bool:
        """Add a group to the replay buffer, or keep the error of a refused one; True where it is new and usable."""
        try:
            group = self.group(sample)
        except LasroError as error:
            log.warning("group %s refused: %s", sample.group_id, error)
            self._refused[sample.group_id] = error
            if len(self._refused) > KEPT_REFUSALS:
                self._refused.popitem(last=False)
            return False
        self._refused.pop(sample.group_id, None)
        with self._lock:
            is_new = self.replay.add(group)
            if is_new:
                self._unsaved[sample.group_id] = sample
        return is_new

    def refusal(self, group_id: str) -> LasroError | None:
        """The error of a refused group; None for any other."""
        return self._refused.get(group_id)

    def settled(self, group_ids: Sequence[str]) -> bool:
        """Whether waiting for these groups is over: all have arrived, or one was refused."""
        return not self.replay.missing(group_ids) or any(name in self._refused for name in group_ids)

    def check(self, group_ids: Sequence[str], waited_s: float) -> None:
        """Raise WireError for a group that was refused, TimeoutExceededError for groups that have not arrived."""
        for name in group_ids:
            if (error := self._refused.get(name)) is not None:
                raise WireError(f"group {name} cannot be trained on: {error}") from error
        if missing := self.replay.missing(group_ids):
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise TimeoutExceededError(
                f"{len(missing)} of {len(group_ids)} groups have not arrived after {waited_s:g} s: "
                f"{', '.join(missing[:5])}{more}; post them again, or wait longer by timeout_s"
            )


class SampleFeed(threading.Thread):
    """Reads groups from the stream into `buffer` and calls `arrived` after each read that brought some.

    An entry of the stream is acknowledged once its group is on disk and `release` is called. A trainer that is killed
    before gets it delivered again. An entry whose group is refused goes to the dead letters, with the error. A Redis
    that lost power may forget an entry and deliver its group again in another one, which may then be the only one left.
    So all entries of a group are held until it is on disk. `lag` is the number of unread entries as of the last read.
    """

    def __init__(self, stream: SampleStream, run: str, buffer: GroupBuffer, arrived: Callable[[], None]) -> None:
        super().__init__(name=f"feed-{run}", daemon=True)
        self._stream, self._run, self._buffer, self._arrived = stream, run, buffer, arrived
        self._holding = threading.Lock()
        self._held: dict[str, list[str]] = {}
        self._done: SimpleQueue[str] = SimpleQueue()
        self._unusable: list[tuple[str, str]] = []
        self._stopping = threading.Event()
        self.lag = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._buffer.has_room():
                    self._take()
                else:
                    self._stopping.wait(BLOCK_MS / 1000)
                self._dead_letter_refused()
                self._acknowledge()
                self.lag = self._stream.lag()
            except (UnreachableError, StorageError) as error:
                log.warning("run %s: samples cannot be read, trying again: %s", self._run, error)
                self._stopping.wait(RETRY_S)

    def _take(self) -> None:
        entries = self._stream.read(READ_COUNT, BLOCK_MS)
        for entry_id, sample in entries:
            with self._holding:
                if self._buffer.accept(sample) or not self._buffer.is_saved(sample.group_id):
                    self._held.setdefault(sample.group_id, []).append(entry_id)
                elif (error := self._buffer.refusal(sample.group_id)) is not None:
                    self._unusable.append((entry_id, str(error)))
                else:
                    self._done.put(entry_id)
        if entries:
            self._arrived()

    def _dead_letter_refused(self) -> None:
        while self._unusable:
            self._stream.dead_letter(*self._unusable[-1])
            self._unusable.pop()

    def _acknowledge(self) -> None:
        entry_ids = [self._done.get_nowait() for _ in range(self._done.qsize())]
        try:
            self._stream.ack(entry_ids)
        except (UnreachableError, StorageError):
            for entry_id in entry_ids:
                self._done.put(entry_id)
            raise

    def release(self) -> None:
        """Acknowledge the entries of all groups that are on disk; from any thread."""
        with self._holding:
            for group_id in [name for name in self._held if self._buffer.is_saved(name)]:
                for entry_id in self._held.pop(group_id):
                    self._done.put(entry_id)

    def stop(self) -> None:
        """End the thread and wait for it, for at most one blocking read."""
        self._stopping.set()
        self.join()
