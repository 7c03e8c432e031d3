"""A surrogate trainer whose every change is committed to a journal, so that it survives crashes and failed steps.

After either, `restore` reads the newest optimiser, weights and groups from disk and repeats the few steps since.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import ConflictError
from lasro.models.backbone import note_of
from lasro.models.frozen import FrozenModel
from lasro.training.adaptation import adapt
from lasro.training.replay_buffer import ReplayBuffer
from lasro.training.surrogate_trainer import SurrogateTrainer, paces
from lasro_surrogate_trainer.journal import Commit, Journal
from lasro_surrogate_trainer.sample_feed import GroupBuffer
from lasro_surrogate_trainer.store import RunStore

log = logging.getLogger("lasro.trainer")
KEPT_COMMITS = 256
"""Number of newest commits whose replies are kept for repeated requests, besides those of leased versions."""


def request_digest(request: wire.AdaptRequest) -> str:
    """A digest by which requests must agree that share an id; a repeat may differ in timeout and measured drift.

    Fields that earlier releases did not have count only where they are set: their requests keep their digests.
    """
    unset = {name for name in ("rate", "settle") if getattr(request, name) == type(request).model_fields[name].default}
    return hashlib.sha256(request.model_dump_json(exclude={"timeout_s", "drift", *unset}).encode()).hexdigest()


class JournaledTrainer:
    """One thread trains, any may read. A restart repeats at most about `redo_s` seconds of training."""

    def __init__(
        self, config: SurrogateRun, frozen: FrozenModel, buffer: GroupBuffer, store: RunStore, redo_s: float
    ) -> None:
        self._run, self._header = store.folder.name, note_of(config.surrogate.backbone)
        self._buffer, self._store, self._journal = buffer, store, Journal(store.folder)
        self._trainer = SurrogateTrainer(frozen, config.surrogate, config.reward_objective)
        self._redo_s, self._unsaved_s = redo_s, 0.0
        self._saved = 0
        self._files: dict[int, list[str]] = {}
        self._is_consistent = False
        self.history: list[Commit] = []
        self.restore()

    @property
    def head(self) -> Commit:
        """The newest commit."""
        return self.history[-1]

    def answered(self, request: wire.AdaptRequest) -> wire.AdaptReply | None:
        """The reply to an earlier request of this id, if any; raises ConflictError where that was another request."""
        commit = next((c for c in reversed(self.history) if c.request_id == request.request_id), None)
        if commit is not None and commit.digest != request_digest(request):
            raise ConflictError(
                f"request_id {request.request_id}: used before for other groups or steps; take a new one"
            )
        return None if commit is None else commit.reply

    # --- from disk -------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Restore from the journal, or start one with the untrained surrogate as version 0."""
        self.history = self._journal.commits()
        if not self.history:
            self._start_from(Commit(number=0, version=0, steps=0))
        self._journal.drop_after(self.head.number)
        self._store.withdraw_after(self.head.version)
        self._repeat_steps()
        self._is_consistent = True

    def _start_from(self, commit: Commit) -> None:
        """Commit and publish the trainer's weights, with its new optimiser."""
        self._journal.save_optimiser(commit.number, self._trainer.optimiser_state())
        self._commit(commit, publish=True)
        self._saved, self._unsaved_s = commit.number, 0.0

    def _repeat_steps(self) -> None:
        """Restore trainer and replay as of the saved optimiser, then repeat the steps up to the newest commit."""
        self._saved, optimiser = self._journal.optimiser()
        replay, self._files = self._buffer.empty_replay(), {}
        start, *later = [commit for commit in self.history if commit.number >= self._saved]
        self._add_groups(replay, start.number)
        self._trainer.load(self._weights(start.version), start.steps)
        self._trainer.load_optimiser(optimiser)
        for before, commit in pairwise([start, *later]):
            self._add_groups(replay, commit.number)
            for pace in paces(commit.steps - before.steps, commit.rate, commit.settle):
                self._trainer.step(replay, pace)
        if later:
            steps = self.head.steps - start.steps
            log.info("run %s: repeated %d steps since the optimiser was saved", self._run, steps)
            # A GPU may give other sums the second time: then the published weights count.
            self._trainer.load_weights(self._weights(self.head.version))
        for commit in self.history:
            replay.mark_entered(commit.groups)
        self._trainer.metrics = self.head.measured
        self._unsaved_s = sum(commit.reply.statistics.duration_s for commit in later if commit.reply is not None)
        self._buffer.start_from(replay)

    def _add_groups(self, replay: ReplayBuffer, up_to: int) -> None:
        """Add the groups of all commits up to number `up_to` to `replay`, unless they were added before."""
        for number in self._journal.numbers("groups"):
            if number <= up_to and number not in self._files:
                for sample in self._journal.groups(number):
                    replay.add(self._buffer.group(sample))
                self._files[number] = replay.activate([])

    def _weights(self, version: int) -> dict[str, np.ndarray]:
        return wire.unpack_tensors(self._store.read(version))[0]

    # --- to disk ---------------------------------------------------------------------------------------------

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Restore before the next change where this one fails: nothing may be trained on uncommitted state."""
        if not self._is_consistent:
            self.restore()
        self._is_consistent = False
        yield
        self._is_consistent = True

    def _commit(self, commit: Commit, publish: bool) -> None:
        if publish:
            header = {"version": str(commit.version), "steps": str(commit.steps), **self._header}
            self._store.publish(commit.version, self._trainer.state(), header)
        self._journal.commit(commit)
        self.history = [*self.history, commit]

    def upload(self, tensors: dict[str, np.ndarray], digest: str) -> None:
        """Start from these weights, as a new version unless they are the newest; raises ConflictError once trained."""
        if self.head.steps:
            raise ConflictError(
                f"run {self._run}: already trained for {self.head.steps} steps, expected an untrained one; "
                "delete the run to start over"
            )
        with self._all_or_nothing():
            if digest != next((c.digest for c in reversed(self.history) if c.request_id is None), None):
                self._trainer.load(tensors, 0)
                head = self.head
                self._start_from(Commit(number=head.number + 1, version=head.version + 1, steps=0, digest=digest))

    def adapt(self, request: wire.AdaptRequest, stopped: Callable[[], bool]) -> wire.AdaptReply:
        """Train on the named groups, which have arrived, and reply once all is on disk.

        Raises NonFiniteError, StorageError, and BusyError once `stopped` returns True; then nothing is committed.
        """
        with self._all_or_nothing():
            if (reply := self.answered(request)) is not None:
                return reply
            names = self._buffer.replay.activate(request.new_groups)
            statistics = adapt(self._trainer, self._buffer.replay, request, stopped)
            stepped = self._trainer.steps > self.head.steps
            commit = Commit(
                number=self.head.number + 1,
                version=self.head.version + stepped,
                steps=self._trainer.steps,
                groups=names,
                request_id=request.request_id,
                rate=request.rate,
                settle=request.settle,
                digest=request_digest(request),
                policy_version=self._buffer.replay.policy_version,
                drift=request.drift,
                reply=wire.AdaptReply(version=self.head.version + stepped, statistics=statistics),
                measured=self._trainer.metrics,
            )
            self._journal.add_groups(commit.number, self._buffer.unsaved(names))
            self._commit(commit, publish=stepped)
        self._buffer.saved(names)
        self._files[commit.number] = names
        self._unsaved_s += statistics.duration_s
        return wire.AdaptReply(version=commit.version, statistics=statistics)

    def tidy(self, closing: bool = False) -> None:
        """Save the optimiser once repeating its steps would take long, and remove commits and versions not needed."""
        if not self._is_consistent:
            return
        if self._unsaved_s >= self._redo_s or (closing and self._unsaved_s):
            self._save()
        leased = self._store.leased()
        kept = [
            commit
            for place, commit in enumerate(self.history, KEPT_COMMITS - len(self.history))
            if place >= 0 or commit.number >= self._saved or (leased is not None and commit.version >= leased)
        ]
        self._journal.remove("commits", {c.number for c in self.history} - {c.number for c in kept})
        self.history = kept
        start = next(commit for commit in kept if commit.number == self._saved)
        self._store.prune({start.version})

    def _save(self) -> None:
        self._journal.save_optimiser(self.head.number, self._trainer.optimiser_state())
        self._saved, self._unsaved_s = self.head.number, 0.0
        self._journal.remove("optimiser", [n for n in self._journal.numbers("optimiser") if n < self._saved])
        kept = self._buffer.replay.kept_ids()
        gone = [number for number, names in self._files.items() if kept.isdisjoint(names)]
        self._journal.remove("groups", gone)
        for number in gone:
            del self._files[number]
