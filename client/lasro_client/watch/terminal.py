"""How a run goes, on a terminal: a live bar of its rounds; elsewhere, such as in a log, a plain line now and then.

Nothing is printed as rich's markup: a reward's words and prompts may have brackets.
"""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.text import Text

from lasro_client.run.divergence import describe_trouble
from lasro_client.run.drift_budget import largest
from lasro_client.run.observer import Observer, RunInfo
from lasro_client.run.round_record import Means, RoundRecord, Stage
from lasro_client.run.unranked import describe_ties, has_many_ties, tied_share, why_unranked
from lasro_client.services.failures import describe as describe_failures

PLAIN_INTERVAL_S = 15.0
LONGEST_FAILURE = 100
"""Characters of a reward's failure in the line of each round; a note has more of them."""
TITLES: dict[Stage, str] = {"pretrain": "stage 1", "train": "stage 2"}
REFERENCES: dict[Stage, str] = {"pretrain": "probe", "train": "base"}
"""Whose samples the reference samples are."""


class Terminal(Observer):
    """Shows the rounds of a run, what it does besides, and the trouble it is in."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title, self._max_s = "", math.inf
        self._rounds: RoundBar | None = None
        self._status: Status | None = None
        self._in_trouble = False
        self._failing = False
        self._ties_noted = False

    def run_started(self, run: RunInfo) -> None:
        self._title = TITLES[run.stage]
        self._max_s = math.inf if run.max_minutes is None else 60 * run.max_minutes
        self._in_trouble = self._failing = self._ties_noted = False

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def activity(self, text: str | None, left_s: float | None = None) -> None:
        if text is not None and left_s is not None:
            text = f"{text}  about {clock(left_s)} left"
        if self._rounds is not None:
            self._rounds.activity(text)
            return
        if self._status is not None:
            self._status.stop()
        self._status = None if text is None else self._console.status(Text(text))
        if self._status is not None:
            self._status.start()

    def rounds_started(self, num_rounds: int, done: int) -> None:
        self._rounds = RoundBar(self._console, self._title, num_rounds, done, self._max_s)

    def round_done(self, record: RoundRecord) -> None:
        assert self._rounds is not None, "rounds_started() comes first"
        self._rounds.update(record)
        health = record.health
        if record.event is not None:
            self.note(f"round {record.round + 1}: {record.event}")
        if health.action is not None or (health.trouble is not None and not self._in_trouble):
            self.note(f"round {record.round + 1}: {describe_trouble(health)}")
        self._in_trouble = health.trouble is not None
        self._note_rewards(record)

    def _note_rewards(self, record: RoundRecord) -> None:
        """Say when rewards begin to fail or to rank nothing, and once that most pairs tie."""
        round, failures = record.round + 1, record.rewards.failures
        if record.unranked_rounds == 1:
            self.note(f"round {round}: no ranked pair to update a generator by: {why_unranked(record)}")
        elif failures and not self._failing:
            self.note(f"round {round}: {describe_failures(failures)}")
        elif not record.unranked_rounds and has_many_ties(record) and not self._ties_noted:
            self._ties_noted = True
            self.note(f"round {round}: {describe_ties(record)}")
        self._failing = bool(failures)

    def rounds_ended(self) -> None:
        if self._rounds is not None:
            self._rounds.stop()
        self._rounds = None

    def run_ended(self) -> None:
        self.activity(None)


class RoundBar:
    """The live bar, or the plain lines. `max_s`: what the run may take by its records' `elapsed_s`."""

    def __init__(self, console: Console, title: str, num_rounds: int, done: int, max_s: float) -> None:
        self._console, self._title, self._max_s = console, title, max_s
        self._started, self._first, self._printed = time.monotonic(), done, 0.0
        self._first_s: float | None = None
        """The records' `elapsed_s`, which pauses do not count in, when the rounds began."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=num_rounds, completed=done, figures="", left="-:--")
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def update(self, record: RoundRecord) -> None:
        """Show a round and the time that is left."""
        done, total, now = record.round + 1, record.num_rounds, time.monotonic()
        if self._first_s is None:
            self._first_s = record.elapsed_s - (now - self._started)
        rounds_s = (record.elapsed_s - self._first_s) / (done - self._first) * (total - done)
        left = clock(max(0.0, min(rounds_s, self._max_s - record.elapsed_s)))
        figures, of, when = describe(record), f"/{total}", f"about {left} left"
        if record.is_searching:
            left, of, when = "-:--", "", ""
        title = f"{self._title}, {record.phase}" if record.phase is not None else self._title
        self._bar.update(self._task, description=title, completed=done, total=total, figures=figures, left=left)
        if done == total or now - self._printed >= PLAIN_INTERVAL_S or record.event is not None:
            self._printed = now
            self._print(f"{done}{of}  {figures}  {when}".rstrip(), title)

    def activity(self, text: str | None) -> None:
        """Show something that is no round."""
        self._bar.update(self._task, figures=text or "")
        if text is not None:
            self._print(text, self._title)

    def _print(self, text: str, title: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{title} {text}", markup=False, highlight=False, soft_wrap=True)


def describe(record: RoundRecord) -> str:
    """The numbers of a round that are worth watching."""
    rewards, surrogate = record.rewards, record.surrogate
    parts = [f"reward {pair(rewards.total)}"]
    if any(rewards.vetoed.values()):
        parts.append(f"vetoed {pair(rewards.vetoed)}")
    if any(value is not None for value in rewards.reference.values()):
        parts.append(f"{REFERENCES[record.stage]} {pair(rewards.reference)}")
    drift, target = largest(record.generator.distance.values()), record.generator.drift_target
    if drift is not None:
        parts.append(f"drift {drift:.2f}" + (f" of {target:.2f}" if target is not None else ""))
    if record.stage == "train" and record.phase != "ranking":
        parts.append(f"surrogate {pair(record.generator.score, signed=True)}")
    if surrogate.fresh_pair_accuracy is not None:
        parts.append(f"pairs {surrogate.fresh_pair_accuracy:.2f}")
    if surrogate.held_out_pair_accuracy is not None:
        parts.append(f"held out {surrogate.held_out_pair_accuracy:.2f}")
    parts.append(f"{record.reward_calls} calls")
    if record.unranked_rounds:
        parts.append(f"rounds without a ranked pair: {record.unranked_rounds}")
    elif has_many_ties(record):
        parts.append(f"{tied_share([record]):.0%} ties")
    if surrogate.failed_samples:
        parts.append(f"{surrogate.failed_samples} failed")
    parts += [f"{name} {each}"[:LONGEST_FAILURE] for name, each in rewards.failures.items()]
    return "  ".join(parts)


def pair(means: Means, signed: bool = False) -> str:
    """The value of each number of steps, fewest first, with slashes in between."""
    shape = "{:+.3f}" if signed else "{:.3f}"
    return "/".join("-" if value is None else shape.format(value) for value in means.values())


def clock(seconds: float) -> str:
    """1:05, or 2:00:05 from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
