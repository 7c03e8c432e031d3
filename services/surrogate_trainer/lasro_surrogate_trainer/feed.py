"""The thread that takes a run's scored groups from Redis into its replay buffer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from lasro import wire
from lasro.errors import LasroError, StorageError, UnreachableError
from lasro.redis_store.sample_stream import SampleStream

log = logging.getLogger("lasro.trainer")
READ_COUNT = 64
BLOCK_MS = 500
RETRY_S = 1.0


class SampleFeed(threading.Thread):
    """Reads while `has_room()`, gives each sample to `accept`, and tells `reject` of those it refuses.

    `lag` is the number of samples not yet read, as of the last read.
    """

    def __init__(
        self,
        stream: SampleStream,
        run: str,
        has_room: Callable[[], bool],
        accept: Callable[[wire.Sample], None],
        reject: Callable[[str, LasroError], None],
    ) -> None:
        super().__init__(name=f"feed-{run}", daemon=True)
        self._stream, self._run = stream, run
        self._has_room, self._accept, self._reject = has_room, accept, reject
        self._stopping = threading.Event()
        self.lag = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._has_room():
                    self._take()
                else:
                    self._stopping.wait(BLOCK_MS / 1000)
                self.lag = self._stream.lag()
            except (UnreachableError, StorageError) as error:
                log.warning("run %s: samples cannot be read, trying again: %s", self._run, error)
                self._stopping.wait(RETRY_S)

    def _take(self) -> None:
        entries = self._stream.read(READ_COUNT, BLOCK_MS)
        for _, sample in entries:
            try:
                self._accept(sample)
            except LasroError as error:
                log.warning("run %s: group %s refused: %s", self._run, sample.group_id, error)
                self._reject(sample.group_id, error)
        # Acknowledged once in memory: a trainer that is killed forgets its replay. Once the replay is in
        # checkpoints, this call moves behind the one that holds these entries; the stream gives out again
        # whatever was not acknowledged, and `Replay.add` passes over what it has.
        self._stream.ack([entry_id for entry_id, _ in entries])

    def stop(self) -> None:
        """End the thread and wait for it: at most one blocking read."""
        self._stopping.set()
        self.join()
