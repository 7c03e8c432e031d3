"""Trackers as observers of a run: figures of each round, pictures of the watched prompts, settings, the summary.

`tracking/sent.json` in the run's folder says what each of them has. So a run that goes on repeats nothing, and sends
what a tracker lacks: rounds from before it was named, or after it failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lasro.config.tracking import Tracker
from lasro.errors import ConfigError, StorageError
from lasro.files import write_json
from lasro.num_steps import ONE_AND_TWO
from lasro.validation import explain, one_line
from lasro_client.evaluation.result import IMAGE_FOLDERS
from lasro_client.run.held_out import PROGRESS_PROMPTS
from lasro_client.run.observer import Observer, RunInfo
from lasro_client.run.round_record import RoundRecord, read_log
from lasro_client.watch.tracked_values import figures, grid, settings, summary_figures
from lasro_client.watch.tracker_kinds import KINDS, TrackerKind, begin_alone

FOLDER, SENT_FILE = "tracking", "sent.json"
PICTURES = "pictures"


@dataclass
class Sent:
    """What one tracker has of a run: its own name of it, settings, rounds, pictures up to this round, the summary."""

    id: str = ""
    settings: bool = False
    rounds: int = 0
    pictures: int = -1
    summary: bool = False


_SENT = TypeAdapter(dict[str, Sent])


class Trackers(Observer):
    """`say` takes a line for the user. One that fails in mid-run is left out from then on; the run does not end."""

    def __init__(self, names: Sequence[Tracker], say: Callable[[str], None]) -> None:
        self._names, self._say = names, say
        self._running: dict[Tracker, TrackerKind] = {}
        self._sent: dict[str, Sent] = {}
        self._run = Path()

    def run_started(self, run: RunInfo) -> None:
        """Raises ConfigError where a tracker cannot be started."""
        self._run, self._running = run.folder, {}
        self._sent = {name: Sent() for name in self._names} | _read_sent(self._path)
        self._keep()
        begin_alone()
        for name in self._names:
            tracker = KINDS[name](run.name, self._path.parent, self._sent[name].id)
            try:
                self._start(tracker, self._sent[name])
            except Exception as error:  # the boundary to a tracker, which raises what it likes
                raise ConfigError(
                    f"tracking.report_to: {name} cannot be started ({_words(error)}); mend that, or leave it out"
                ) from error
            self._running[name] = tracker
            self._say(f"{name}: {tracker.where}")
        self._keep()

    def rounds_started(self, num_rounds: int, done: int) -> None:
        for record in read_log(self._run / "log.jsonl"):
            self.round_done(record)
        self.folder_updated()

    def round_done(self, record: RoundRecord) -> None:
        lacking: list[Tracker] = [name for name in self._names if record.round >= self._sent[name].rounds]
        for name in lacking:
            # In the order of their rounds: some trackers take nothing that is older than what they have.
            self._send(name, self._send_pictures, record.round)
            self._send(name, self._send_round, record)
        if lacking:
            self._keep()

    def folder_updated(self) -> None:
        for name in self._names:
            self._send(name, self._send_pictures, self._sent[name].rounds)
            self._send(name, self._send_summary)
        self._keep()

    def run_ended(self) -> None:
        for name in self._names:
            self._send(name, lambda tracker, _: tracker.tracker.finish())
        self._running.clear()

    def _send(self, name: Tracker, work: Callable[..., None], *arguments: object) -> None:
        """Do `work` with a tracker that runs still; what it raises ends the tracker, and not the run."""
        tracker = self._running.get(name)
        if tracker is None:
            return
        try:
            work(tracker, self._sent[name], *arguments)
        except Exception as error:  # noqa: BLE001 - the boundary to a tracker, which raises what it likes
            del self._running[name]
            self._say(
                f"{name} failed ({_words(error)}); the run goes on, and when it is started again {name} gets the rest"
            )

    def _start(self, tracker: TrackerKind, sent: Sent) -> None:
        tracker.start()
        sent.id = tracker.id
        if not sent.settings:
            tracker.tracker.store_init_configuration(settings(self._read("config.json")))
            sent.settings = True

    def _send_round(self, tracker: TrackerKind, sent: Sent, record: RoundRecord) -> None:
        tracker.tracker.log(figures(record), step=record.round + 1)
        sent.rounds = record.round + 1

    def _send_pictures(self, tracker: TrackerKind, sent: Sent, newest: int) -> None:
        """Those of rounds after the ones that it has, up to `newest`; those of the base count as round 0."""
        for round, files in self._pictures():
            if sent.pictures < round <= newest:
                tracker.log_picture(PICTURES, grid(files), round)
                sent.pictures = round

    def _send_summary(self, tracker: TrackerKind, sent: Sent) -> None:
        summary = self._read("summary.json")
        if summary and not sent.summary and (found := summary_figures(summary)):
            tracker.tracker.log(found, step=sent.rounds)
        sent.summary = bool(summary)  # it is gone where a run gets more rounds

    def _pictures(self) -> Iterator[tuple[int, list[Path]]]:
        steps = self._read("config.json").get("train", {}).get("steps", ONE_AND_TWO)
        base = self._run / "evaluation" / "before" / IMAGE_FOLDERS[max(steps)]
        for folder in (base, *sorted((self._run / "progress").glob("[0-9]*"))):
            if files := sorted(folder.glob("*.png"))[:PROGRESS_PROMPTS]:
                yield (0 if folder is base else int(folder.name)), files

    @property
    def _path(self) -> Path:
        return self._run / FOLDER / SENT_FILE

    def _keep(self) -> None:
        write_json(self._path, {name: asdict(sent) for name, sent in self._sent.items()})

    def _read(self, name: str) -> dict[str, Any]:
        path = self._run / name
        return json.loads(path.read_bytes()) if path.exists() else {}


def _read_sent(path: Path) -> dict[str, Sent]:
    try:
        return _SENT.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise StorageError(
            f"{path}: cannot be read ({explain(error)}); delete it: trackers get all rounds again"
        ) from error


def _words(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")
