"""What a run from nothing says of its reward after the first round, and of budgets that are too small."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lasro.config import RunSettings
from lasro.errors import BudgetError
from lasro.training.distributed import DistributedContext
from lasro.wire import (
    GroupState,
    GroupStatus,
    GroupSubmission,
    RewardValue,
    ScoredItem,
    ScoreReply,
    ScoreRequest,
    Status,
    pack_tensors,
)
from lasro_client.evaluation.result import Evaluation
from lasro_client.run.least_budget import check_calls, check_minutes
from lasro_client.run.observer import Observer
from lasro_client.run.round_record import RoundRecord, SurrogateRecord
from lasro_client.run.start_audit import StartAudit
from lasro_client.run.start_findings import FirstGroup, StartFacts, gather, notes, read_audit, why_futile

RANKED = SurrogateRecord(ranked_pairs=12, tied_pairs=3, tie_margin=0.01)
TIED = SurrogateRecord(tied_pairs=15, tie_margin=0.01)
"""What the trainer made of the first round's pairs."""
NOTHING = np.empty(0)


def group(totals: list[float], again: list[float] | None = None, own: int | None = None) -> FirstGroup:
    count = len(totals)
    is_own_N = np.arange(count) < (count if own is None else own)
    missing = [np.nan] * (count - len(again or []))
    return FirstGroup(np.array(totals), np.tile([1, 2], count)[:count], is_own_N, np.array([*(again or []), *missing]))


def facts(
    *groups: FirstGroup,
    evaluated: Any = NOTHING,
    bound: float | None = None,
    apart: bool = False,
    ranked: SurrogateRecord = RANKED,
) -> StartFacts:
    return gather(groups, np.array(evaluated, float), ranked, apart, bound)


def test_signal_and_noise_by_hand() -> None:
    """Guards against noise that is taken for signal, and against groups that were scored once and so count as exact.

    Repeats of the first group differ by 0.2 each: variance 0.02. The means 0.1 and 0.9, and the values 0 and 1, have a
    mean square of images of (2 * 0.32 + 0.5) / 2 = 0.57.
    """
    found = facts(group([0.0, 1.0], again=[0.2, 0.8]), group([0.0, 1.0]))
    assert found.within.repeats == pytest.approx(0.02)
    assert found.within.images == pytest.approx((0.57 - 0.02) / 1.5)
    assert found.tied_share == pytest.approx(0.2)
    first, *more = notes(found, 840, 14_376, 5000, "r", 1)
    assert first == (
        "rewards of a prompt's images vary by 0.61 (standard deviation), 20% of pairs tie, repeats of an image differ "
        "by 0.14: at best 93% of pairs are ranked right; 840 to 14,376 reward calls by these settings, 5,000 by "
        "budget.max_reward_calls"
    )
    assert more == []
    noisy = facts(group([0.0, 1.0], again=[1.0, 0.1]), group([0.0, 1.0]))
    assert notes(noisy, 9, 9, None, "r", 1)[1].startswith("much of what reward r says is noise; ")


def test_a_reward_that_repeats_itself_can_rank_all_but_its_ties() -> None:
    """Guards against advice for a reward that needs none, and against pairs of one step and of two ranked apart that
    count as compared with each other."""
    found = facts(group([0.0, 5.0, 1.0, 6.0], again=[0.0, 5.0, 1.0, 6.0]), apart=True)
    assert found.within.images == pytest.approx(0.5)
    (says,) = notes(found, 10, 10, 10, "r", 1)
    assert "repeats agree: up to 80% of pairs can be ranked; 10 reward calls by these settings" in says


HIGH = [1.0] * 19


@pytest.mark.parametrize(
    ("found", "bounded", "says"),
    [
        (facts(group([0.5, 0.5]), evaluated=[0.5]), False, "is 0.5 for all 3 images of the base"),
        (facts(group([0.5, 0.5], own=1), evaluated=[0.5], bound=1.0), True, "is 0.5 for all 2 images of the base"),
        (facts(group([1.0, 1.0]), bound=1.0), True, "is at its highest value, 1, for 100% of 2 images"),
        (facts(group([0.2, *HIGH])), False, "is at its highest value, 1, for 95% of 20 images of the base: there is"),
        (facts(group([*HIGH, 0.2, 0.2], own=19)), False, "100% of 19 images"),
        (facts(group([0.2, 0.2, *HIGH])), False, None),
        (facts(group(HIGH), evaluated=[0.2, 0.2], ranked=TIED), False, "no two images of the first round rank: there"),
        (facts(group([0.2, *HIGH]), bound=2.0), True, None),
        (facts(group([0.5, 0.5, 0.6], own=2), evaluated=[0.6, np.nan]), False, None),
        (facts(group([np.nan, np.nan])), False, None),
    ],
)
def test_what_no_further_round_is_worth_its_calls(found: StartFacts, bounded: bool, says: str | None) -> None:
    """Guards against ending runs that have something to gain, and against perturbed samples that are taken for the
    base's."""
    why = why_futile(found, "reward r", bounded)
    assert why is None if says is None else why is not None and says in why


def test_little_to_gain_is_a_note() -> None:
    """Guards against a saturated reward that is found out only by its result."""
    found = facts(group([0.2, 0.2, *HIGH]))
    assert (
        "90% of the base's images are at the highest value, 1: there is little to gain"
        in notes(found, 1, 1, None, "r", 1)[1]
    )


# --- the audit itself ----------------------------------------------------------------------------------------------


def config(**changes: Any) -> RunSettings:
    tables = {"name": "x", "prompts": {"train": "a", "held_out": "b"}, "rewards": [{"name": "r"}, {"name": "log"}]}
    tables["rewards"][1]["weight"] = 0  # pyright: ignore[reportArgumentType]
    return RunSettings.model_validate(tables | changes)


def item(value: float | None) -> ScoredItem:
    status = Status.OK if value is not None else Status.REJECTED
    return ScoredItem(scores={name: RewardValue(score=value, status=status) for name in ("r", "log")}, total=None)


class Api:
    """Answers as it did the first time; counts images."""

    def __init__(self) -> None:
        self.images = 0

    def reward(self, name: str) -> Any:
        return SimpleNamespace(repeats=2, range=None)

    def score(self, request: ScoreRequest) -> ScoreReply:
        assert request.fresh
        assert request.rewards == ["r"]
        self.images += len(request.images)
        return ScoreReply(items=[item(float(image)) for image in request.images])


class Notes(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


def posted(round: int, index: int, values: list[float | None]) -> tuple[GroupSubmission, GroupStatus]:
    post = GroupSubmission(
        group_id=f"r{round}-{index}",
        round=round,
        index=index,
        prompt="p",
        policy_version=0,
        rewards=["r", "log"],
        stages=[1, 2] * (len(values) // 2),
        images=[str(value or 0).encode() for value in values],
        latents=pack_tensors({"latents": np.zeros((len(values), 1, 1, 1), np.float16)}),
    )
    items = [item(value) for value in values]
    return post, GroupStatus(group_id=post.group_id, state=GroupState.SCORED, items=items, reward_calls=0)


BEFORE = Evaluation(prompts=["p"], seed=0, rewards={name: {1: [0.3], 2: [None]} for name in ("r", "log")})
RECORD = RoundRecord("train", 0, surrogate=RANKED)


def audited(folder: Path, first: list[float | None], api: Api | None = None) -> tuple[str | None, Api, list[str]]:
    api, heard = api or Api(), Notes()
    client: Any = api
    audit = StartAudit(config(), folder, client, heard, DistributedContext())
    for round in (0, 1):  # with train.overlap the next round's are seen before the first is over
        pairs = [posted(round, 0, [0.1 + round, 0.1]), posted(round, 1, first)]
        audit.see([post for post, _ in pairs], [status for _, status in pairs])
    return audit.after_first_round(RECORD, BEFORE), api, heard.heard


def test_one_group_is_scored_again_and_a_resumed_run_does_not_repeat_it(tmp_path: Path) -> None:
    """Guards against calls for a group that does not vary, for rewards that are only logged, or at every resume."""
    why, api, heard = audited(tmp_path, [0.0, 0.4, None, 0.8])
    assert (why, api.images, len(heard)) == (None, 4, 1)
    found = read_audit(tmp_path)
    assert found is not None
    assert found["groups"] == ["r0-0", "r0-1"]
    assert found["calls"]["of_the_audit"] == 4 * 2, "two repeats each"
    assert (found["samples"], found["failed"], found["base_samples"]) == (6, 1, 6)
    assert found["within"]["repeat_variance"] == 0
    assert heard[0].startswith("audit: rewards of a prompt's images vary by ")
    assert "1 of 6 samples failed" in heard[0]
    assert audited(tmp_path, [0.0, 0.4, None, 0.8], api) == (None, api, [])
    assert api.images == 4


def test_a_verdict_is_kept_and_an_audit_of_another_kind_is_none(tmp_path: Path) -> None:
    """Guards against a run that goes on after a crash although its reward is constant, and against the figures of
    `lasro rewards audit --out` taken for a run's."""
    (tmp_path / "audit.json").write_text(json.dumps({"trainable": "yes"}))
    assert read_audit(tmp_path) is None
    flat: list[float | None] = [0.1, 0.1]
    why, api, _ = audited(tmp_path, flat)
    assert why is None, "the evaluation gave something else"
    assert api.images == 0, "what does not vary need not be scored again"


# --- budgets -------------------------------------------------------------------------------------------------------


def test_the_least_budget_by_hand() -> None:
    """Guards against a check that forgets repeats, or one for a run that knows what it needs.

    3 prompts x 4 seeds x 2 are 24 images, 48 with the base's; ranking has 6 prompts, and of one seed perturbed ones:
    6 x 10 + 24 + 3 x 48 = 228.
    """
    poor = config(budget={"max_reward_calls": 3 * 228 - 1})
    with pytest.raises(BudgetError, match=r"max_reward_calls: got 683, expected at least 684, for a round of ranking"):
        check_calls(poor, {"r": 2, "log": 1})
    check_calls(poor, {"r": 1, "log": 1})
    check_calls(config(budget={"max_reward_calls": 0}, train={"warmup_rounds": 0}), {"r": 1, "log": 1})


def test_the_least_minutes_by_hand() -> None:
    """Guards against a run that is refused for a slow start, or let go on for two rounds.

    100 s for the start and the first round, which took 20 s: 4 more of them make 180 s.
    """
    with pytest.raises(BudgetError, match=r"max_minutes: got 2\.9, expected at least 3, .* at 20 s each"):
        check_minutes(config(budget={"max_minutes": 2.9}), 100, 20)
    check_minutes(config(budget={"max_minutes": 3}), 100, 20)
    check_minutes(config(budget={"max_minutes": 0.1}, train={"rounds": 3}), 100, 20)
    check_minutes(config(), 1e9, 1e9)
