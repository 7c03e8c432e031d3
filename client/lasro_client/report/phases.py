"""The phases of a run of stage 2 that begins from nothing: ranking, pilot, training, and each new beginning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from lasro_client.report.run_data import RunData
from lasro_client.run.round_record import Means, RoundRecord

NEWEST = 4
"""Rounds at the end of a phase that its figures are means over: one round has a few prompts only."""
ORDINALS = ("2nd", "3rd")


class PhaseRow(NamedTuple):
    """One phase; `accuracy` and `gain` are means over its last rounds, None where they were not measured."""

    title: str
    first: int
    """Its first round, from 1."""
    last: int
    reward_calls: int
    elapsed_s: float
    accuracy: float | None
    gain: Means


def phase_rows(run: RunData) -> list[PhaseRow]:
    """The phases in order; empty for a run that trained from its first round on, and only once."""
    rounds = run.stage("train")
    phases = [list(records) for _, records in groupby(rounds, _phase)]
    if all(record.phase != "ranking" and not record.restarts for record in rounds):
        return []
    ends = [None, *(records[-1] for records in phases)]
    return [_row(records, before) for records, before in zip(phases, ends, strict=False)]


def beginnings(rounds: Sequence[RoundRecord]) -> list[float]:
    """Where charts over rounds done mark that another phase began: halfway between two rounds."""
    return [after.round + 0.5 for before, after in pairwise(rounds) if _phase(before) != _phase(after)]


def events(run: RunData) -> list[str]:
    """What changed after which round, and why."""
    return [_sentence(record) for record in run.stage("train") if record.event]


def worrying_events(run: RunData) -> list[str]:
    """Those after which the generator began again, and the one that ended the run."""
    rounds, ended = run.stage("train"), (run.summary or {}).get("ended")
    found = [before for before, after in pairwise(rounds) if before.event and after.restarts > before.restarts]
    found += [record for record in rounds[-1:] if record.event and record.event == ended]
    return [_sentence(record) for record in found]


def _sentence(record: RoundRecord) -> str:
    return f"Round {record.round + 1}: {record.event}."


def _phase(record: RoundRecord) -> tuple[str | None, int]:
    return record.phase, record.restarts


def _row(records: Sequence[RoundRecord], before: RoundRecord | None) -> PhaseRow:
    last, newest = records[-1], records[-NEWEST:]
    accuracies = [
        (record.surrogate.fresh_pair_accuracy, max(record.surrogate.ranked_pairs, 1))
        for record in newest
        if record.surrogate.fresh_pair_accuracy is not None
    ]
    pairs = sum(count for _, count in accuracies)
    return PhaseRow(
        _title(last),
        records[0].round + 1,
        last.round + 1,
        last.reward_calls - (before.reward_calls if before else 0),
        last.elapsed_s - (before.elapsed_s if before else 0.0),
        sum(accuracy * count for accuracy, count in accuracies) / pairs if pairs else None,
        {n: _mean([record.rewards.gain.get(n) for record in newest]) for n in last.rewards.gain},
    )


def _title(record: RoundRecord) -> str:
    title = (record.phase or "training").capitalize()
    if not record.restarts:
        return title
    beginning = record.restarts + 1
    return f"{title}, {ORDINALS[beginning - 2] if beginning <= 3 else f'{beginning}th'} beginning"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None
