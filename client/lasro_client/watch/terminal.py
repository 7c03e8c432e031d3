"""One line that shows how a run goes: rounds, rewards, pair accuracy, spending and time left."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_INTERVAL_S = 15.0


class RoundDisplay:
    """A live bar on a terminal; elsewhere a plain line now and then. Context manager.

    `max_minutes` is what the run may take, by its log's `elapsed_s`.
    """

    def __init__(self, console: Console, title: str, rounds: int, done: int, max_minutes: float | None = None) -> None:
        self.console, self.title, self.rounds, self.done = console, title, rounds, done
        self._most_s = math.inf if max_minutes is None else 60 * max_minutes
        self._started, self._first, self._printed = time.monotonic(), done, 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=rounds, completed=done, figures="", left="-:--")

    def __enter__(self) -> RoundDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, line: dict[str, Any]) -> None:
        """Show a round's log line."""
        self.done, self.rounds = line["round"] + 1, line["rounds"]
        figures, now = describe(line), time.monotonic()
        rounds_s = (now - self._started) / (self.done - self._first) * (self.rounds - self.done)
        left = clock(max(0.0, min(rounds_s, self._most_s - line["elapsed_s"])))
        self._bar.update(self._task, completed=self.done, total=self.rounds, figures=figures, left=left)
        last = self.done == self.rounds
        if not self.console.is_terminal and (last or now - self._printed >= PLAIN_INTERVAL_S):
            self._printed = now
            self.console.print(
                f"{self.title} {self.done}/{self.rounds}  {figures}  about {left} left",
                highlight=False,
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        """Show something that is no round."""
        self._bar.update(self._task, figures=text)
        if not self.console.is_terminal:
            self.console.print(f"{self.title} {text}", highlight=False, soft_wrap=True)


def describe(line: dict[str, Any]) -> str:
    """The figures of a log line worth watching."""
    parts = [f"reward {pair(line['total'])}"]
    if any(line["vetoed"].values()):
        parts.append(f"vetoed {pair(line['vetoed'])}")
    if line["beside"]["one_step"] is not None:
        parts.append(f"{'scout' if line['stage'] == 'pretrain' else 'base'} {pair(line['beside'])}")
    if "score" in line:
        parts.append(f"surrogate {pair(line['score'], signed=True)}")
    for key, name in (("fresh_pair_accuracy", "pairs"), ("held_out_pair_accuracy", "held out")):
        if line[key] is not None:
            parts.append(f"{name} {line[key]:.2f}")
    parts.append(f"{line['reward_calls']} calls")
    if line["failed_samples"]:
        parts.append(f"{line['failed_samples']} failed")
    return "  ".join(parts)


def pair(values: dict[str, float | None], signed: bool = False) -> str:
    """One- and two-step values beside each other."""
    shape = "{:+.3f}" if signed else "{:.3f}"
    return "/".join("-" if value is None else shape.format(value) for value in values.values())


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
