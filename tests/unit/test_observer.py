"""Observers: what they hear when something goes wrong, and what the terminal makes of a run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from lasro.errors import ConfigError
from lasro_client.cli.output import print_table
from lasro_client.run.observer import Observer, Observers, RunInfo
from lasro_client.run.round_record import (
    GeneratorRecord,
    HealthRecord,
    RewardRecord,
    RoundRecord,
    SurrogateRecord,
)
from lasro_client.services.failures import Failure
from lasro_client.watch.terminal import Terminal, clock

RUN = RunInfo("demo", "train", Path("unused"), max_minutes=None)


class Recorder(Observer):
    """Keeps the calls that start and end something; `refuses` is one that raises."""

    def __init__(self, name: str, calls: list[str], refuses: str = "") -> None:
        self._name, self._calls, self._refuses = name, calls, refuses

    def _heard(self, call: str) -> None:
        self._calls.append(f"{self._name} {call}")
        if call == self._refuses:
            raise ConfigError(f"{call} refused")

    def run_started(self, run: RunInfo) -> None:
        self._heard("run_started")

    def rounds_started(self, num_rounds: int, done: int) -> None:
        self._heard("rounds_started")

    def rounds_ended(self) -> None:
        self._heard("rounds_ended")

    def run_ended(self) -> None:
        self._heard("run_ended")


def test_what_was_started_is_ended_when_another_observer_fails() -> None:
    """Guards against a terminal that stays in its live display, and a metrics port that stays open, after an error."""
    calls: list[str] = []
    observers = Observers([Recorder("a", calls), Recorder("b", calls, "rounds_started"), Recorder("c", calls)])
    with pytest.raises(ConfigError, match="refused"), observers.run(RUN), observers.rounds(3, 0):
        pytest.fail("no round may start")
    assert calls[3:] == [
        "a rounds_started", "b rounds_started", "b rounds_ended", "a rounds_ended",
        "c run_ended", "b run_ended", "a run_ended",
    ]  # fmt: skip


def lines_of(records: list[RoundRecord]) -> list[str]:
    """What a terminal that is none, such as a log file, gets of a run with these rounds."""
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=30))
    observers = Observers([terminal])
    with observers.run(RUN):
        observers.activity("evaluating")
        observers.activity(None)
        with observers.rounds(len(records), 0):
            for record in records:
                observers.round_done(record)
            observers.activity("final steps 3/9", left_s=65)
        observers.note("stopped after a while; the same command goes on from there")
    return out.getvalue().splitlines()


def test_a_log_gets_plain_lines_that_are_not_wrapped() -> None:
    """Guards against messages that cannot be searched for, since they were broken at the width of no terminal."""
    record = RoundRecord(
        "train",
        0,
        num_rounds=1,
        rewards=RewardRecord(total={1: 0.5, 2: None}, reference={1: 0.4, 2: 0.3}),
        generator=GeneratorRecord(score={1: -1.0, 2: 0.25}),
        reward_calls=12,
    )
    assert lines_of([record]) == [
        "stage 2 1/1  reward 0.500/-  base 0.400/0.300  surrogate -1.000/+0.250  12 calls  about 0:00 left",
        "stage 2 final steps 3/9  about 1:05 left",
        "stopped after a while; the same command goes on from there",
    ]


def test_the_time_left_goes_by_the_time_of_rounds() -> None:
    """Bug: after a pause of a night, ten rounds of five seconds were said to take a night each."""
    records = [RoundRecord("train", round, 12, elapsed_s=100.0 + 10 * round, event="said") for round in range(2)]
    assert "about 0:50 left" in lines_of(records)[2]


def test_trouble_is_reported_when_it_begins_and_when_something_is_done() -> None:
    """Guards against a line for each of a hundred rounds in the same trouble, and against a stop without a reason."""
    health = [HealthRecord(), HealthRecord("it fell"), HealthRecord("it fell"), HealthRecord("it fell", "stop")]
    records = [RoundRecord("train", round, 4, health=each) for round, each in enumerate(health)]
    found = [line for line in lines_of(records) if line.startswith("round")]
    assert found == [
        "round 2: it fell. The run went on.",
        "round 4: it fell. The run was ended there; the adapter is that of its best rounds.",
    ]


def test_failing_rewards_and_ties_are_said_when_they_begin() -> None:
    """Bug: a reward that failed for a whole run showed in the number of failed samples alone, without its words."""
    failure = Failure(24, 24, {"http_error": 24}, "http_error", "HTTP 424: the licence has run out")
    dead = RewardRecord(samples=24, failures={"dying": failure})
    partly = RewardRecord(samples=24, scored_samples=12, failures={"dying": failure})
    ties = SurrogateRecord(ranked_pairs=1, tied_pairs=9, spread=0.001, tie_margin=0.02)
    records = [
        RoundRecord("train", 0, 7, rewards=partly),
        RoundRecord("train", 1, 7, rewards=partly),
        RoundRecord("train", 2, 7, rewards=dead, unranked_rounds=1),
        RoundRecord("train", 3, 7, rewards=dead, unranked_rounds=2),
        RoundRecord("train", 4, 7, surrogate=ties),
        RoundRecord("train", 5, 7, surrogate=ties),
        RoundRecord("train", 6, 7, rewards=dead, surrogate=ties, unranked_rounds=1),
    ]
    lines = lines_of(records)
    notes = [line.partition(" (")[0] for line in lines if line.startswith("round")]
    assert notes == [
        "round 1: reward dying scored 0 of 24",
        "round 3: no ranked pair to update a generator by: reward dying scored 0 of 24",
        "round 5: 9 of 10 pairs are ties: totals of a prompt have a standard deviation of 0.001, and differences up to "
        'the tie margin of 0.02 do not rank; lower surrogate.tie_margin or set its tie_margin_unit = "spread", in '
        "another folder",
        "round 7: no ranked pair to update a generator by: reward dying scored 0 of 24",
    ]
    progress = next(line for line in lines if line.startswith("stage 2 7/7"))
    assert "rounds without a ranked pair: 1" in progress
    assert "dying http_error: HTTP 424: the licence has run out" in progress


@pytest.mark.parametrize("is_terminal", [False, True])
def test_brackets_in_a_rewards_words_are_shown(is_terminal: bool) -> None:
    """Bug: `[redacted]` was left out of messages, and a run whose reward said `[/x]` ended as a MarkupError."""
    out = io.StringIO()
    failure = Failure(1, 2, {"bad_reply": 1}, "bad_reply", "got [redacted] [/x]")
    record = RoundRecord("train", 0, 1, rewards=RewardRecord(samples=2, scored_samples=1, failures={"any": failure}))
    observers = Observers([Terminal(Console(file=out, width=200, force_terminal=is_terminal))])
    with observers.run(RUN):
        observers.activity("drawing [/y]")
        observers.activity(None)
        with observers.rounds(1, 0):
            observers.activity("ranking [/y]")
            observers.round_done(record)
        observers.note("p.txt:1: '[bold] a disc' is taken as a prompt")
    shown = out.getvalue()
    assert shown.count("got [redacted] [/x]") >= 2, "in the note and in the line of the round"
    assert "[/y]" in shown
    assert "'[bold] a disc'" in shown


def test_brackets_in_a_table_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: a dead letter whose error had brackets could not be listed."""
    print_table(("id", "error"), [["1", "got [redacted] [/x]"]])
    assert "got [redacted] [/x]" in capsys.readouterr().out


def test_times_read_as_people_write_them() -> None:
    """Guards against 65 s shown as 0:65, and hours shown as minutes."""
    assert [clock(seconds) for seconds in (0, 65, 7205)] == ["0:00", "1:05", "2:00:05"]
