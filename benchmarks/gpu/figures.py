"""What was measured: each figure with its baseline of the same process, taken in turns."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

LEAST_REPEATS, MOST_REPEATS = 3, 30
GB = 1e9


class Figure(NamedTuple):
    """One quantity, measured several times in turns with its baseline."""

    name: str
    unit: str
    values: list[float]
    baseline_name: str = ""
    baseline: list[float] = []  # noqa: RUF012 - none is ever changed
    at_least: float | None = None
    """Of the median over the baseline's."""
    at_most: float | None = None
    """Of the median over the baseline's, or of the median itself where there is no baseline."""
    note: str = ""


def judged(figure: Figure) -> dict[str, Any]:
    """The figure with medians, their ratio, and whether it reaches what is wanted; None where nothing is."""
    median = statistics.median(figure.values)
    ratio = median / statistics.median(figure.baseline) if figure.baseline else None
    measured = median if ratio is None else ratio
    met = None
    if figure.at_least is not None:
        met = measured >= figure.at_least
    elif figure.at_most is not None:
        met = measured <= figure.at_most
    return figure._asdict() | {"median": median, "ratio": ratio, "met": met}


class Recorder:
    """Writes each figure as soon as it is there: what is killed later loses nothing of it."""

    def __init__(self, file: Path, seconds: float) -> None:
        """`seconds`: after the first measurement, when no further one should begin."""
        self.file, self.seconds = file, seconds
        self._began: float | None = None

    def add(self, figure: Figure) -> None:
        """A later one of the same name takes its place."""
        self._write(judged(figure))

    def note(self, text: str) -> None:
        """What a reader of the table should know."""
        self._write({"text": text})

    def machine(self, described: dict[str, Any]) -> None:
        """Where the figures come from."""
        self._write({"machine": described})

    def _write(self, line: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def parts(self, count: int) -> Iterator[Recorder]:
        """One for each of so many things to measure, which share the time that is left."""
        for left in range(count, 0, -1):
            yield Recorder(self.file, self._left_s() / left)

    def has_time(self, done: int) -> bool:
        """Whether to measure once more."""
        left_s = self._left_s()
        return done < LEAST_REPEATS or (done < MOST_REPEATS and left_s > 0)

    def _left_s(self) -> float:
        now = time.monotonic()
        self._began = self._began or now
        return max(0.0, self._began + self.seconds - now)


class Turns(NamedTuple):
    """Of ours and the baseline: seconds of each repeat, and bytes taken at most besides what was held before."""

    ours: list[float]
    baseline: list[float]
    extra: tuple[int, int] | None
    """None where there is no GPU."""


def in_turns(recorder: Recorder, device: torch.device, ours: Callable[[], Any], baseline: Callable[[], Any]) -> Turns:
    """Repeat one and the other while there is time, after one of each that does not count."""
    works, seconds = (ours, baseline), ([], [])
    extra = [_extra_bytes(device, work) for work in works]
    while recorder.has_time(len(seconds[0])):
        for work, each in zip(works, seconds, strict=True):
            each.append(timed(device, work))
    return Turns(*seconds, None if device.type != "cuda" else (extra[0], extra[1]))


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds until the device has done it."""
    _wait_for(device)
    started = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started


def _extra_bytes(device: torch.device, work: Callable[[], Any]) -> int:
    """Most that was allocated at one time of a second call: the first leaves behind what a trainer keeps."""
    if device.type != "cuda":
        work()
        return 0
    work()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    work()
    _wait_for(device)
    return torch.cuda.max_memory_allocated() - held


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory_figure(name: str, turns: Turns, baseline_name: str) -> Figure | None:
    """Of what `in_turns` measured; None without a GPU."""
    if turns.extra is None:
        return None
    ours, baseline = ([extra / GB] for extra in turns.extra)
    return Figure(f"{name}: memory besides weights", "GB", ours, baseline_name, baseline)


def per_second(count: int, seconds: Sequence[float]) -> list[float]:
    return [count / each for each in seconds]
