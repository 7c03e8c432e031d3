"""What rewards said where they gave no number: counted by status, in the words of the commonest failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lasro.validation import one_line
from lasro.wire import RewardValue, ScoredItem, Status

REMEDIES = {
    Status.TIMEOUT: "raise its timeout_s, lower its max_batch or concurrency, or make it faster",
    Status.UNREACHABLE: "see that it runs, and stays up",
    Status.HTTP_ERROR: "see the scorer's own log",
    Status.BAD_REPLY: "see in docs/rewards.md what it has to answer",
    Status.BLOCKED: "serve it by https, or add its address to LASRO_ALLOWED_NETWORKS",
    Status.UNAVAILABLE: "too many calls failed in a row, or too much was waiting: see the reward API's log",
    Status.REJECTED: "give prompts and metadata that it can judge",
}
"""What to do about each kind of failure."""


@dataclass(frozen=True)
class Failure:
    """One reward's failures among some samples."""

    samples: int
    """That it did not score."""
    of: int
    """All samples."""
    statuses: Mapping[str, int]
    """Samples by `wire.Status`."""
    status: str
    """Of the commonest failure."""
    error: str
    """Its words, on one line and bounded; the reward API took secrets out of them."""

    def __str__(self) -> str:
        return f"{self.status}: {self.error}" if self.error else self.status


def failures_of(items: Sequence[ScoredItem], rewards: Iterable[str]) -> dict[str, Failure]:
    """The failures of those rewards that did not score every item, by name."""
    found = {}
    for name in rewards:
        failed = [item.scores[name] for item in items if item.scores[name].score is None]
        if failed:
            found[name] = _failure(failed, len(items))
    return found


def _failure(failed: Sequence[RewardValue], of: int) -> Failure:
    statuses = Counter(value.status for value in failed)
    # A reward that is left alone for its failures is not called: what it said before that says more.
    telling = [value for value in failed if value.status is not Status.UNAVAILABLE] or failed
    (status, error), _ = Counter((value.status, value.error) for value in telling).most_common(1)[0]
    counts = {str(kind): count for kind, count in statuses.most_common()}
    return Failure(len(failed), of, counts, str(status), one_line(error or ""))


def describe(failures: Mapping[str, Failure]) -> str:
    """One line about the failures of some rewards, with their words."""
    parts = [f"reward {name} scored {each.of - each.samples} of {each.of} ({each})" for name, each in failures.items()]
    return "; ".join(parts)


def remedies(failures: Mapping[str, Failure]) -> str:
    """What to do about them, each kind once."""
    return "; ".join(dict.fromkeys(REMEDIES[Status(each.status)] for each in failures.values()))
