"""Rewards that do not answer: how long they are waited for, what is said, and when a run ends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lasro.config import RunSettings
from lasro.errors import BudgetError, RewardError
from lasro.training.distributed import DistributedContext
from lasro.wire import RewardValue, ScoredItem, Status
from lasro_client.run import reward_watch
from lasro_client.run.folder import RunFolder
from lasro_client.run.observer import Observer
from lasro_client.run.progress import Progress
from lasro_client.run.reward_watch import RewardWatch
from lasro_client.run.round_record import RewardRecord, RoundRecord, SurrogateRecord
from lasro_client.run.unranked import has_many_ties, tied_share, why_unranked
from lasro_client.services.failures import Failure, failures_of

WAIT_S = 100.0
LICENCE = "HTTP 424: the licence of this scorer has run out"
Answer = tuple[Status, str | None]
OK: Answer = (Status.OK, None)


class Scripted:
    """Rewards that answer a probe as written down, the last answer for ever; time passes only in pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: Sequence[Answer]) -> None:
        self.answers, self.probes_s = answers, list[float]()
        self.now_s = 0.0
        monkeypatch.setattr(reward_watch, "time", SimpleNamespace(monotonic=lambda: self.now_s, sleep=self.sleep))

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s

    def probe(self, rewards: Sequence[str]) -> list[ScoredItem]:
        turn = len(self.probes_s)
        self.probes_s.append(self.now_s)
        scores = {}
        for name in rewards:
            status, error = self.answers[name][min(turn, len(self.answers[name]) - 1)]
            scores[name] = RewardValue(score=0.5 if status is Status.OK else None, status=status, error=error)
        return [ScoredItem(scores=scores, total=None)]


class Notes(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


def settings(**health: Any) -> RunSettings:
    return RunSettings.model_validate(
        {
            "name": "x",
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "dying"}, {"name": "logged", "weight": 0}],
            "services": {"reward_wait_s": WAIT_S},
            "health": health,
        }
    )


def watch(scripted: Scripted, observer: Observer | None = None, first_round: int = 0, **health: Any) -> RewardWatch:
    return RewardWatch(settings(**health), scripted.probe, observer or Notes(), DistributedContext(), first_round)


def test_a_cold_reward_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: an endpoint that was cold for 90 s had an empty evaluation, and 30 rounds without a score."""
    cold = [(Status.HTTP_ERROR, "HTTP 503 loading")] * 3 + [(Status.UNAVAILABLE, "circuit open")] * 2
    scripted, notes = Scripted(monkeypatch, dying=[*cold, OK], logged=[OK]), Notes()
    watch(scripted, notes).wait(["dying", "logged"])
    assert scripted.probes_s == pytest.approx([0, 1, 3, 7, 15, 30])
    assert notes.heard == [
        "reward dying scored 0 of 1 (http_error: HTTP 503 loading); waiting up to 100 s for it "
        "(services.reward_wait_s)",
        "reward dying answers; the run goes on",
    ]


def test_a_dead_reward_ends_the_run_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a run whose reward was dead went on to its last round, exit status 0, and said nowhere why."""
    dead = [(Status.HTTP_ERROR, LICENCE), (Status.UNAVAILABLE, "circuit open after 5 failures in a row")]
    scripted = Scripted(monkeypatch, dying=dead, logged=[OK])
    with pytest.raises(
        RewardError, match=r"reward dying scored 0 of 1 .*HTTP 424: the licence of this scorer"
    ) as ended:
        watch(scripted).wait(["dying", "logged"])
    assert "after 100 s of waiting (services.reward_wait_s)" in str(ended.value)
    assert "the same command goes on from there" in str(ended.value)
    assert "circuit" not in str(ended.value)
    assert scripted.probes_s[-1] == pytest.approx(WAIT_S), "the last one is at the end of the time that is stated"


def test_what_waiting_cannot_mend_ends_at_once_and_a_rejected_image_is_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against minutes of waiting for a forbidden address, or for a reward that only dislikes an image."""
    blocked = Scripted(monkeypatch, dying=[(Status.BLOCKED, "10.0.0.1 is private")])
    with pytest.raises(RewardError, match="blocked: 10"):
        watch(blocked).wait(["dying"])
    rejecting = Scripted(monkeypatch, dying=[(Status.REJECTED, "no face")])
    watch(rejecting).wait(["dying"])
    assert (blocked.now_s, rejecting.now_s) == (0, 0)


def test_a_wait_ends_when_the_user_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a Ctrl-C that takes effect after three minutes."""
    scripted = Scripted(monkeypatch, dying=[(Status.TIMEOUT, "no reply")])
    watch(scripted).wait(["dying"], lambda: scripted.now_s >= 4)
    assert scripted.now_s == pytest.approx(4, abs=0.5)


def failed_round(rounds: int, scored: int = 0, round: int = 5) -> RoundRecord:
    failures = {"dying": Failure(24 - scored, 24, {"http_error": 24 - scored}, "http_error", LICENCE)}
    rewards = RewardRecord(samples=24, scored_samples=scored, failures=failures)
    return RoundRecord("train", round, rewards=rewards, unranked_rounds=rounds)


def test_only_a_round_without_any_score_is_waited_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against probes after every round, and against rounds that are spent on a reward that is away."""
    scripted = Scripted(monkeypatch, dying=[OK])
    for record in (RoundRecord("train", 0), failed_round(0, scored=20), failed_round(1, scored=3)):
        watch(scripted).after_round(record, lambda: False)
    assert scripted.probes_s == []
    watch(scripted).after_round(failed_round(1), lambda: False)
    assert scripted.probes_s == [0], "those that make the total, and not what is only logged"


def test_rounds_that_teach_nothing_end_the_run_though_probes_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a reward too slow for a round's images answers the probe of one image, for ever."""
    scripted = Scripted(monkeypatch, dying=[OK])
    watch(scripted, max_unranked_rounds=3).after_round(failed_round(2), lambda: False)
    with pytest.raises(RewardError, match=r"3 rounds in a row without a ranked pair.*scored 0 of 24.*the licence"):
        watch(scripted, max_unranked_rounds=3).after_round(failed_round(3), lambda: False)


def test_a_resumed_run_counts_its_own_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a run that had ended for rounds without a pair ended again after one more, whatever had been mended."""
    scripted = Scripted(monkeypatch, dying=[OK])
    resumed = watch(scripted, first_round=4, max_unranked_rounds=2)
    resumed.after_round(failed_round(6, scored=1, round=4), lambda: False)
    with pytest.raises(RewardError, match="2 rounds in a row"):
        resumed.after_round(failed_round(7, round=5), lambda: False)


@pytest.mark.parametrize(("rounds", "unranked", "ends"), [(3, 3, True), (3, 2, False)])
def test_a_run_none_of_whose_rounds_gave_a_pair_is_not_finished(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rounds: int, unranked: int, ends: bool
) -> None:
    """Bug: a run of fewer rounds than `max_unranked_rounds` ended with status 0 and a difference of 0.000 ± 0.000."""
    watching = watch(Scripted(monkeypatch, dying=[OK]))
    folder = RunFolder(tmp_path, settings(), "train")
    for round in range(rounds):
        folder.log(failed_round(round + 1, round=round))
    with pytest.raises(RewardError, match=r"none of the 3 .* licence .*train\.rounds") if ends else nullcontext():
        watching.after_rounds(Progress(rounds, unranked=unranked), folder)


def test_a_budget_without_room_for_a_round_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bug: a run that had no round ended with status 0 and an adapter that changes nothing."""
    with pytest.raises(BudgetError, match=r"no round fits into the budget.*raise budget\.max_minutes"):
        watch(Scripted(monkeypatch, dying=[OK])).after_rounds(Progress(), RunFolder(tmp_path, settings(), "train"))


def tied_round(ranked: int, tied: int, spread: float, margin: float, vetoed: float = 0.0) -> RoundRecord:
    rewards = RewardRecord(samples=24, scored_samples=24, vetoed={1: vetoed, 2: vetoed})
    surrogate = SurrogateRecord(ranked_pairs=ranked, tied_pairs=tied, spread=spread, tie_margin=margin)
    return RoundRecord("train", 5, rewards=rewards, surrogate=surrogate)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (tied_round(0, 66, 0.0013, 0.02), ["66 of 66 pairs are ties", "0.0013", "0.02", "lower surrogate.tie_margin"]),
        (tied_round(0, 66, 0.0, 0.0), ["66 of 66 pairs are ties: totals do not vary"]),
        (tied_round(0, 66, 0.2, 0.004), ["a reward with more grades"]),
        (tied_round(0, 66, 0.0, 0.0, vetoed=1.0), ["a guard vetoed every sample; lower its floor"]),
        (tied_round(0, 0, 0.2, 0.004), ["raise seeds_per_prompt"]),
        (failed_round(1), ["reward dying scored 0 of 24 (http_error: HTTP 424", "see the scorer's own log"]),
        (RoundRecord("train", 5), ["no sample has a finite total"]),
    ],
)
def test_a_round_without_a_pair_says_why(record: RoundRecord, said: list[str]) -> None:
    """Bug: rounds in which all totals lay within the tie margin looked like any other."""
    text = why_unranked(record)
    assert all(part in text for part in said)
    assert "\n" not in text
    assert len(text) < 800


def test_many_ties_are_more_than_half() -> None:
    """Guards against a note about ties in a healthy run, and against none where most of what is paid ranks nothing."""
    assert not has_many_ties(tied_round(33, 33, 0.2, 0.1))
    assert has_many_ties(tied_round(32, 34, 0.2, 0.1))
    assert not has_many_ties(tied_round(0, 0, 0.2, 0.1))
    assert tied_share([tied_round(10, 20, 0.2, 0.1), tied_round(10, 0, 0.2, 0.1)]) == 0.5
    assert tied_share([]) == 0


def test_failures_are_in_the_commonest_words_and_bounded() -> None:
    """Guards against "circuit open" in place of why it opened, and against a page of HTML in a terminal."""

    def item(status: Status, error: str | None) -> ScoredItem:
        value = RewardValue(score=1.0 if status is Status.OK else None, status=status, error=error)
        return ScoredItem(scores={"any": value}, total=None)

    long = "<html>\n" + "x" * 5000
    items = [item(Status.UNAVAILABLE, "circuit open")] * 3 + [item(Status.TIMEOUT, "late"), item(*OK)]
    items += [item(Status.BAD_REPLY, long)] * 2
    found = failures_of(items, ["any"])["any"]
    assert (found.samples, found.of) == (6, 7)
    assert found.statuses == {"unavailable": 3, "bad_reply": 2, "timeout": 1}
    assert found.status == "bad_reply"
    assert found.error == ("<html> " + "x" * 5000)[:300]
    assert str(failures_of(items[:3], ["any"])["any"]) == "unavailable: circuit open"
    assert failures_of([item(*OK)], ["any"]) == {}
