"""What a run tells those who watch it: terminal, report, Prometheus. Imports none of them, and no torch.

The command line chooses the observers and passes them to `train` and `pretrain`. Only the main process of a
distributed run calls them, from one thread. log.jsonl is no observer: it is part of the state that a run resumes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lasro_client.run.round_record import RoundRecord, Stage


@dataclass(frozen=True)
class RunInfo:
    """What does not change while a run lasts."""

    name: str
    stage: Stage
    folder: Path
    max_minutes: float | None
    """What the run may take, measured as `RoundRecord.elapsed_s`; None: no limit."""


class Observer:
    """Base of all observers: does nothing. The methods are called in the order in which they stand here.

    A LasroError that one raises ends the run, which can be resumed.
    """

    def run_started(self, run: RunInfo) -> None:
        """Before anything else, also when a run is resumed. A finished run is not started again."""

    def note(self, text: str) -> None:
        """A sentence for the user, at any time."""

    def activity(self, text: str | None, left_s: float | None = None) -> None:
        """What takes long now and is no round, at any time, and when it will be over; None: it is over."""

    def folder_updated(self) -> None:
        """The run folder has a new evaluation, new pictures, the summary or why the run stopped, or
        `train.report_rounds` rounds passed."""

    def rounds_started(self, num_rounds: int, done: int) -> None:
        """Rounds begin; `done` of them were done before the run was resumed."""

    def round_done(self, record: RoundRecord) -> None:
        """After each round; its line is in log.jsonl."""

    def rounds_ended(self) -> None:
        """No further round follows. Called too when `rounds_started` or a round failed."""

    def run_ended(self) -> None:
        """The run is finished, interrupted or failed. Called too when `run_started` failed."""


class Observers(Observer):
    """Passes each call on to several observers, in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    @contextmanager
    def run(self, run: RunInfo) -> Iterator[None]:
        """Calls `run_started` now and `run_ended` at the end."""
        with ExitStack() as exits:
            for observer in self._observers:
                exits.callback(observer.run_ended)
                observer.run_started(run)
            yield

    @contextmanager
    def rounds(self, num_rounds: int, done: int) -> Iterator[None]:
        """Calls `rounds_started` now and `rounds_ended` at the end."""
        with ExitStack() as exits:
            for observer in self._observers:
                exits.callback(observer.rounds_ended)
                observer.rounds_started(num_rounds, done)
            yield

    def note(self, text: str) -> None:
        for observer in self._observers:
            observer.note(text)

    def activity(self, text: str | None, left_s: float | None = None) -> None:
        for observer in self._observers:
            observer.activity(text, left_s)

    def folder_updated(self) -> None:
        for observer in self._observers:
            observer.folder_updated()

    def round_done(self, record: RoundRecord) -> None:
        for observer in self._observers:
            observer.round_done(record)
