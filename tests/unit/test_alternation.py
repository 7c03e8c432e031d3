"""What a run does when it is in trouble, with rewards and a surrogate that are written down beforehand."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lasro import wire
from lasro.config import RunSettings
from lasro.errors import BudgetError, ConfigError
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext
from lasro.training.prompts import Prompt
from lasro_client.run import time_budget
from lasro_client.run.alternation import Alternation
from lasro_client.run.folder import RunFolder
from lasro_client.run.round_record import RoundRecord

SEEDS = 2
GAINS = [0.0, 0.1, 0.2, 0.3, -0.2, -0.3, 0.1, 0.2, 0.4, 0.4]


class Written:
    """A reward of 0.5 for the base and 0.5 + gain for the generator, and a surrogate with the same slope everywhere."""

    max_timestep = 200

    def __init__(self) -> None:
        self.leased: list[int] = []
        self.settled: list[tuple[int, int]] = []
        """Rounds before which it settled, and by how many steps."""
        self.peers = DistributedContext()

    def post(self, posts: list[wire.GroupSubmission]) -> list[wire.GroupStatus]:
        def item(post: wire.GroupSubmission, sample: int) -> wire.ScoredItem:
            score = 0.5 if sample >= 2 * SEEDS else 0.5 + GAINS[post.round]
            return wire.ScoredItem(scores={"any": wire.RewardValue(score=score, status=wire.Status.OK)}, total=None)

        return [
            wire.GroupStatus(
                group_id="g",
                state=wire.GroupState.SCORED,
                items=[item(post, sample) for sample in range(len(post.stages))],
                reward_calls=0,
            )
            for post in posts
        ]

    @property
    def source(self) -> Written:
        return self

    def settle(self, round: int, steps: int, rate: float) -> wire.AdaptReply:
        self.settled.append((round, steps))
        return self.adapt([], round, None, steps, 1.0)

    def adapt(
        self, scored: list[wire.GroupStatus], round: int, drift: float | None, steps: int, rate: float
    ) -> wire.AdaptReply:
        counts: dict[str, Any] = {"pairs": 1, "constant_groups": 0, "failed_samples": 0, "stale_groups": 0}
        names = ("loss", "pair_accuracy", "fresh_pair_accuracy", "held_out_pair_accuracy", "reward_gap")
        nothing: dict[str, Any] = dict.fromkeys(names)
        return wire.AdaptReply(version=round + 1, statistics=wire.AdaptStatistics(duration_s=0, **counts, **nothing))

    def lease(self, version: int) -> None:
        self.leased.append(version)

    def follow(self, version: int) -> None:
        pass

    def score_and_gradient(self, latents_BCHW: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(len(latents_BCHW)).float(), torch.full_like(latents_BCHW, 0.1)


@dataclasses.dataclass
class Made:
    alternation: Alternation
    averages: dict[int, list[torch.Tensor]]

    def run(self, until: int = len(GAINS)) -> list[RoundRecord]:
        records = []
        while not self.alternation.over and self.alternation.progress.round < until:
            before = self.alternation.trainer.version
            records.append(self.alternation.round())
            if records[-1].health.action is None:
                self.averages[self.alternation.progress.round - 1] = average(self.alternation)
            assert self.alternation.trainer.version == before + 1, "updates are counted on, whatever happens"
        return records


def average(alternation: Alternation) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in alternation.trainer.average]


def make(
    model_path: Path,
    folder: Path,
    health: dict[str, Any],
    written: Written | None = None,
    overlap: bool = False,
    max_minutes: float | None = None,
    rounds: int | None = None,
    train: dict[str, Any] | None = None,
) -> Made:
    config = RunSettings.model_validate(
        {
            "name": "health",
            "model": {"path": str(model_path), "device": "cpu"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "lora": {"rank": 2},
            "train": {
                "rounds": rounds or len(GAINS),
                "warmup_rounds": 0,
                "drift_budget": None,
                "generator_steps": 1,
                "decay_steps": None if max_minutes is None else len(GAINS) // 2,
                "prompts_per_round": 1,
                "seeds_per_prompt": SEEDS,
                "batch_size": 2,
                "overlap": overlap,
            }
            | (train or {}),
            "health": {"window_rounds": 2, "decline_errors": 0.5, "max_drift": 1e9} | health,
            "budget": {"max_minutes": max_minutes},
        }
    )
    trainer = create_trainer(config, load_model(config.model))
    services: Any = written or Written()
    run_folder = RunFolder(folder, config, "train")
    run_folder.open()
    alternation = Alternation(run_folder, trainer, services, services, [Prompt("a red star")])
    alternation.begin(0)
    return Made(alternation, {})


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_run_that_lost_its_gain_ends_with_its_best(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against exporting the weights of the decline, and a resumed run that trains on after it was ended."""
    made = make(one_level_model_path, tmp_path, {})
    records = made.run()
    assert [record.round for record in records] == [0, 1, 2, 3, 4]
    assert records[-1].health.action == "stop"
    assert "was +0.25 up to round 4" in str(records[-1].health.trouble)
    assert same(average(made.alternation), made.averages[3])
    assert not same(made.averages[3], made.averages[2])
    made.alternation.checkpoint()
    again = make(one_level_model_path, tmp_path, {})
    assert again.alternation.over
    assert again.alternation.progress.ended == records[-1].health.trouble
    assert same(average(again.alternation), made.averages[3])


def test_a_run_that_rolls_back_goes_on_from_its_best(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against rolling back for ever, and to rounds that were rolled back themselves."""
    made = make(one_level_model_path, tmp_path, {"on_trouble": "roll_back"})
    records = made.run(until=5)
    assert records[-1].health.action == "roll_back"
    assert same(average(made.alternation), made.averages[3])
    records += made.run()
    assert [record.round for record in records] == list(range(len(GAINS)))
    assert made.alternation.progress.ended is None
    assert made.alternation.monitor.best.round == 9
    once = make(one_level_model_path, tmp_path / "once", {"on_trouble": "roll_back", "max_roll_backs": 0})
    assert once.run()[-1].health.action == "stop"


def test_a_resumed_run_goes_back_to_the_same_best(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a checkpoint without the best state: the run would go back to what it was resumed with."""
    whole = make(one_level_model_path, tmp_path / "whole", {})
    whole.run()
    for stop in (1, 4):
        made = make(one_level_model_path, tmp_path / f"{stop}", {})
        made.run(until=stop)
        made.alternation.checkpoint()
        resumed = make(one_level_model_path, tmp_path / f"{stop}", {})
        assert resumed.run()[-1].health.action == "stop"
        assert same(average(resumed.alternation), average(whole.alternation))


@pytest.mark.parametrize("limit", [1e9, 1e-9])
def test_a_model_that_drifted_too_far_before_any_gain_is_the_base_again(
    one_level_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    """Guards against keeping a ruined model because there was no better one to go back to, and against the opposite."""
    monkeypatch.setitem(globals(), "GAINS", [-0.1 - 0.01 * (round % 2) for round in range(len(GAINS))])
    made = make(one_level_model_path, tmp_path, {"max_drift": limit, "decline_errors": 1e-9})
    records = made.run()
    untouched = all(not tensor.any() for tensor in made.alternation.trainer.average[1::2])
    assert untouched == (limit < 1)
    assert (records[-1].health.action == "stop") == (limit < 1)
    assert records[-1].health.trouble is not None


def test_trouble_can_be_ignored(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a run that is ended although it was told not to be."""
    records = make(one_level_model_path, tmp_path, {"on_trouble": "ignore"}).run()
    assert len(records) == len(GAINS)
    assert records[4].health.trouble is not None
    assert not any(record.health.action for record in records)


class SideBySide(Written):
    """Adapts only once the generator has asked for a score, and keeps which version it asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.version, self.ascended, self.drawn = -1, list[int](), list[int]()

    def post(self, posts: list[wire.GroupSubmission]) -> list[wire.GroupStatus]:
        self.drawn += [post.round for post in posts]
        assert all(post.policy_version == post.round for post in posts), "drawn before the update that comes first"
        return super().post(posts)

    def adapt(self, *given: Any, **more: Any) -> wire.AdaptReply:
        assert self.asked.wait(10), "the generator waits for the surrogate"
        self.asked.clear()
        return super().adapt(*given, **more)

    def follow(self, version: int) -> None:
        self.version = version

    def score_and_gradient(self, latents_BCHW: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        self.ascended.append(self.version)
        self.asked.set()
        return super().score_and_gradient(latents_BCHW, *rest)


def test_updates_beside_the_surrogates_own_ascend_the_round_before(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: a version that is whichever was there in time, so that a resumed or repeated round is another one."""
    overlapping = SideBySide()
    whole = make(one_level_model_path, tmp_path / "whole", {}, overlapping, overlap=True)
    whole.run(until=3)
    assert overlapping.ascended == [0, 0, 1, 1, 2, 2], "both stages, by what the round before left"
    assert overlapping.drawn == [0, 1, 2, 3], "each round once, the next one before this one ends"
    stopped = make(one_level_model_path, tmp_path / "part", {}, SideBySide(), overlap=True)
    stopped.run(until=2)
    stopped.alternation.checkpoint()
    again = SideBySide()
    resumed = make(one_level_model_path, tmp_path / "part", {}, again, overlap=True)
    resumed.run(until=3)
    assert again.ascended == [2, 2]
    assert again.drawn == [2, 3]
    assert same(average(resumed.alternation), average(whole.alternation))


class Unranked(Written):
    """Gives no ranked pair in these rounds; in those of `dead` since no sample gets a reward."""

    def __init__(self, unranked: set[int], dead: set[int] | None = None) -> None:
        super().__init__()
        self.unranked, self.dead = unranked, dead or set[int]()

    def post(self, posts: list[wire.GroupSubmission]) -> list[wire.GroupStatus]:
        if posts[0].round not in self.dead:
            return super().post(posts)
        failed = wire.RewardValue(score=None, status=wire.Status.HTTP_ERROR, error="the licence has run out")
        return [
            status.model_copy(
                update={"items": [wire.ScoredItem(scores={"any": failed}, total=None)] * len(post.stages)}
            )
            for status, post in zip(super().post(posts), posts, strict=True)
        ]

    def adapt(
        self, scored: list[wire.GroupStatus], round: int, drift: float | None, steps: int, rate: float
    ) -> wire.AdaptReply:
        reply = super().adapt(scored, round, drift, steps, rate)
        counts = {"constant_groups": len(scored)} if round in self.unranked | self.dead else {}
        return reply.model_copy(update={"statistics": reply.statistics.model_copy(update=counts)})


def updates(alternation: Alternation, rounds: int) -> tuple[list[int], list[int]]:
    """The generator's updates in each round, and the rounds in a row without a pair as they are recorded."""
    versions, recorded = [alternation.trainer.version], []
    for _ in range(rounds):
        recorded.append(alternation.round().unranked_rounds)
        versions.append(alternation.trainer.version)
    return [after - before for before, after in itertools.pairwise(versions)], recorded


def test_the_generator_stays_in_rounds_without_a_ranked_pair(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: a reward that died after 30 images gave 58 rounds without a score and 60 updates, by noise."""
    written = Unranked({1, 4}, dead={2})
    alternation = make(one_level_model_path, tmp_path, {}, written).alternation
    assert updates(alternation, 3) == ([1, 0, 0], [0, 1, 2])
    before = average(alternation)
    alternation.checkpoint()
    resumed = make(one_level_model_path, tmp_path, {}, written).alternation
    assert resumed.progress.unranked == 2
    assert same(average(resumed), before)
    assert updates(resumed, 2) == ([1, 0], [0, 1])


def test_an_overlapping_update_waits_for_the_round_before(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against updates after a round without a pair, and in one whose every reward is known to have failed."""
    alternation = make(one_level_model_path, tmp_path, {}, Unranked({1}, dead={4}), overlap=True).alternation
    assert updates(alternation, 7) == ([1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0, 0])


def test_a_budget_spent_by_the_next_round_ends_the_run_after_this_one(
    one_level_model_path: Path, tmp_path: Path
) -> None:
    """Bug: the round that was paid for is lost, because the next one, drawn meanwhile, was refused."""

    class Spent(SideBySide):
        def post(self, posts: list[wire.GroupSubmission]) -> list[wire.GroupStatus]:
            if posts[0].round == 2:
                raise BudgetError("spent")
            return super().post(posts)

    made = make(one_level_model_path, tmp_path, {}, Spent(), overlap=True)
    assert len(made.run(until=2)) == 2
    with pytest.raises(BudgetError):
        made.alternation.round()
    assert made.alternation.progress.round == 2


def test_a_run_has_no_more_minutes_than_it_was_given(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: on a slow machine a run takes twice as long as was planned, or each resume begins to count anew."""
    made = make(one_level_model_path, tmp_path, {}, max_minutes=60)
    made.run(until=2)
    made.alternation.progress = made.alternation.progress._replace(elapsed_s=59.9 * 60)
    made.alternation.checkpoint()
    resumed = make(one_level_model_path, tmp_path, {}, max_minutes=60)
    resumed.run(until=3)
    resumed.alternation.progress = resumed.alternation.progress._replace(elapsed_s=60 * 60)
    resumed.alternation.checkpoint()
    over = make(one_level_model_path, tmp_path, {}, max_minutes=60)
    with pytest.raises(BudgetError, match=r"budget\.max_minutes: the 60 minutes are over"):
        over.alternation.round()
    assert over.alternation.progress.round == 3


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The one number is the time that runs see; tests move it on."""
    now_s = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now_s[0])
    monkeypatch.setattr(time_budget, "time", clock)
    return now_s


def test_the_rate_falls_over_the_rounds_that_fit_into_the_minutes(
    one_level_model_path: Path, tmp_path: Path, now_s: list[float]
) -> None:
    """Bug: on slow cores a run is cut off at half its learning rate, where the weights still jump about.

    At ten seconds a round eighty are for eight of ten rounds; the plan outlives a resume at another pace.
    """

    class Slow(Written):
        def adapt(self, *arguments: Any, **more: Any) -> wire.AdaptReply:
            now_s[0] += 10
            return super().adapt(*arguments, **more)

    def begun() -> Alternation:
        return make(one_level_model_path, tmp_path, {"on_trouble": "ignore"}, Slow(), max_minutes=81 / 60).alternation

    alternation = begun()
    for _ in range(6):
        alternation.round()
    assert alternation.num_rounds == 8
    assert alternation.trainer.decay_steps == 4  # of five
    alternation.checkpoint()
    now_s[0] += 1000
    again = begun()
    assert again.trainer.decay_steps == 4
    now_s[0] -= 5
    records = [again.round() for _ in range(2)]
    assert again.over
    assert [record.round for record in records] == [6, 7]
    assert {record.num_rounds for record in records} == {8}


def test_more_rounds_give_what_a_run_of_as_many_gives(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: a finished run cannot get more rounds, or they begin with another optimiser, other prompts or no best."""
    settings = {"on_trouble": "ignore"}
    whole = make(one_level_model_path, tmp_path / "whole", settings, rounds=4)
    whole.run()
    short = make(one_level_model_path, tmp_path / "short", settings, rounds=2)
    short.run()
    short.alternation.checkpoint()
    longer = make(one_level_model_path, tmp_path / "short", settings, rounds=4)
    assert longer.alternation.progress.round == 2
    longer.run()
    assert same(average(longer.alternation), average(whole.alternation))
    assert longer.alternation.monitor.state() == whole.alternation.monitor.state()


def test_more_minutes_are_planned_anew(one_level_model_path: Path, tmp_path: Path, now_s: list[float]) -> None:
    """Bug: a run that its minutes had cut short ends where it ended before, however many more it gets."""

    class Slow(Written):
        def adapt(self, *arguments: Any, **more: Any) -> wire.AdaptReply:
            now_s[0] += 10
            return super().adapt(*arguments, **more)

    settings = {"on_trouble": "ignore"}
    short = make(one_level_model_path, tmp_path, settings, Slow(), max_minutes=81 / 60)
    assert len(short.run()) == 8
    short.alternation.checkpoint()
    longer = make(one_level_model_path, tmp_path, settings, Slow(), max_minutes=200 / 60)
    assert longer.alternation.trainer.decay_steps == 5
    assert [record.round for record in longer.run()] == [8, 9]


def test_a_slow_beginning_does_not_cost_the_rounds_for_which_there_is_time(
    one_level_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now_s: list[float]
) -> None:
    """Bug: other work beside the first rounds of a demo, over before the sixth, cost it a fifth of all its rounds.

    After three at twenty seconds five more fit into the rest; after four at five seconds all that are left do.
    """
    rounds_done = [0]
    monkeypatch.setattr(time_budget, "PACE_ROUNDS", 2)

    class Hurried(Written):
        def adapt(self, *arguments: Any, **more: Any) -> wire.AdaptReply:
            rounds_done[0] += 1
            now_s[0] += 20 if rounds_done[0] <= 3 else 5
            return super().adapt(*arguments, **more)

    settings = {"on_trouble": "ignore"}
    alternation = make(one_level_model_path, tmp_path, settings, Hurried(), max_minutes=161 / 60).alternation
    planned = []
    while not alternation.over:
        alternation.round()
        planned.append(alternation.num_rounds)
    assert planned == [10] * 2 + [8] * 4 + [10] * 4
    assert alternation.trainer.decay_steps == 5


def test_overlapping_rounds_are_for_one_process(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against two threads of a process that make collective calls in an order of their own."""
    several = Written()
    several.peers = DistributedContext(0, 2)
    with pytest.raises(ConfigError, match=r"train\.overlap: got true with 2 processes"):
        make(one_level_model_path, tmp_path, {}, several, overlap=True)


def test_rounds_of_the_second_step_alone_say_nothing_of_gain_or_drift(
    one_level_model_path: Path, tmp_path: Path
) -> None:
    """Guards against a gain of the second step alone that is taken for the whole, and a drift that seems to halve."""
    made = make(one_level_model_path, tmp_path, {"on_trouble": "ignore"}, train={"second_step_rounds": 2})
    records = made.run(until=6)
    measured = [record.rewards.gain[2] is not None for record in records]
    assert measured == [False, False, True, False, True, False]  # the first round's generator is the base
    assert [record.generator.drift[2] is not None for record in records] == measured


def test_a_pilot_without_a_sign_of_a_gain_is_taken_back(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a model that was moved by a reward of which nothing could be shown when the budget was spent."""
    made = make(one_level_model_path, tmp_path, {"on_trouble": "ignore"})
    made.run(until=2)
    assert made.alternation.conclude() is None
    assert not made.alternation.trainer.is_base
    made.alternation.schedule.phase = "pilot"
    assert "changes nothing" in (made.alternation.conclude() or "")
    assert made.alternation.trainer.is_base
