"""A run from nothing, round by round: ranking, pilot, training, back to the start and the end, by written rewards."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lasro import wire
from lasro.config import RunSettings
from lasro.functional.drift_control import FIRST_RADIUS
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext
from lasro.training.prompts import Prompt
from lasro_client.run.alternation import Alternation
from lasro_client.run.folder import RunFolder
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.train_schedule import PILOT_SHARE

SEEDS, ROUNDS, UPDATES = 2, 60, 2
GOOD = 0.9
SETTLED = 1000
"""Added to the version of a surrogate that settled."""


class Written:
    """A reward of 0.5 for reference samples and 0.5 + `gain(round)` for all others, and a surrogate whose accuracy is
    written too, with a slope that differs from prompt to prompt."""

    max_timestep = 200

    def __init__(self, gain: Callable[[int], float], accuracy: Callable[[int], float]) -> None:
        self.gain, self.accuracy = gain, accuracy
        self.peers = DistributedContext()
        self.posted: list[wire.GroupSubmission] = []
        self.adapted: list[tuple[int, int, float]] = []
        """Round, steps and share of the learning rate."""
        self.settled: list[tuple[int, int]] = []
        """Rounds done and steps."""
        self.followed: list[int] = []
        self.drifts: list[float | None] = []
        """Of the generator behind each round's groups, as the trainer was told."""

    def post(self, posts: list[wire.GroupSubmission]) -> list[wire.GroupStatus]:
        self.posted += posts
        return [
            wire.GroupStatus(group_id="g", state=wire.GroupState.SCORED, items=self._items(post), reward_calls=0)
            for post in posts
        ]

    def _items(self, post: wire.GroupSubmission) -> list[wire.ScoredItem]:
        scores = [0.5 if sample >= 2 * SEEDS else 0.5 + self.gain(post.round) for sample in range(len(post.stages))]
        values = [wire.RewardValue(score=score, status=wire.Status.OK) for score in scores]
        return [wire.ScoredItem(scores={"any": value}, total=None) for value in values]

    @property
    def source(self) -> Written:
        return self

    def adapt(
        self, scored: list[wire.GroupStatus], round: int, drift: float | None, steps: int, rate: float
    ) -> wire.AdaptReply:
        self.adapted.append((round, steps, rate))
        self.drifts.append(drift)
        return self._reply(round + 1, self.accuracy(round))

    def settle(self, round: int, steps: int, rate: float) -> wire.AdaptReply:
        self.settled.append((round, steps))
        return self._reply(SETTLED + round, None)

    def _reply(self, version: int, accuracy: float | None) -> wire.AdaptReply:
        counts: dict[str, Any] = dict.fromkeys(("constant_groups", "failed_samples", "stale_groups"), 0)
        nothing: dict[str, Any] = dict.fromkeys(("loss", "pair_accuracy", "held_out_pair_accuracy", "reward_gap"))
        statistics = wire.AdaptStatistics(
            duration_s=0, pairs=100, ranked_pairs=100, fresh_pair_accuracy=accuracy, **counts, **nothing
        )
        return wire.AdaptReply(version=version, statistics=statistics)

    def lease(self, version: int) -> None:
        pass

    def follow(self, version: int) -> None:
        self.followed.append(version)

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return latents_BCHW.mean((1, 2, 3)), 0.1 * noise_BCHW + self.followed[-1] % 7 * 0.01


def run_in(model_path: Path, folder: Path, written: Written, **train: Any) -> Alternation:
    """Begun, or resumed from the folder's checkpoint."""
    config = RunSettings.model_validate(
        {
            "name": "phases",
            "model": {"path": str(model_path), "device": "cpu"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "lora": {"rank": 2},
            "surrogate": {"groups_per_step": 2, "buffer_groups": 300},
            "train": {
                "rounds": ROUNDS,
                "prompts_per_round": 1,
                "seeds_per_prompt": SEEDS,
                "batch_size": 2,
                "generator_steps": UPDATES,
                "surrogate_steps": 4,
                "ranking_steps": 7,
                "settled_rate": 0.5,
            }
            | train,
        }
    )
    services: Any = written
    run_folder = RunFolder(folder, config, "train")
    run_folder.open()
    trainer = create_trainer(config, load_model(config.model))
    alternation = Alternation(run_folder, trainer, services, services, [Prompt("a red star"), Prompt("a heart")])
    alternation.begin(0)
    alternation.measure_by({1: 2000.0, 2: 2000.0})
    written.follow(alternation.surrogate_version)
    return alternation


def rounds(alternation: Alternation, count: int) -> list[RoundRecord]:
    return [alternation.round() for _ in range(count)]


def until(alternation: Alternation, phase: str) -> list[RoundRecord]:
    """The rounds before this phase begins."""
    found = []
    while alternation.schedule.phase != phase:
        found.append(alternation.round())
        assert len(found) < ROUNDS
    return found


def weights(alternation: Alternation) -> list[torch.Tensor]:
    return [value.detach().clone() for value in (*alternation.trainer.parameters, *alternation.trainer.average)]


def same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def helped(round: int) -> float:
    return 0.2 + 0.01 * (round % 2)


def fooled(round: int) -> float:
    return -helped(round)


def good(round: int) -> float:
    return GOOD


def test_ranking_leaves_the_generator_and_trains_the_surrogate_alone(
    one_level_model_path: Path, tmp_path: Path
) -> None:
    """Guards against updates by a surrogate that has learned nothing, and ranking on the base's samples alone."""
    written = Written(helped, good)
    alternation = run_in(one_level_model_path, tmp_path, written)
    before = weights(alternation)
    records = until(alternation, "pilot")
    assert {record.phase for record in records} == {"ranking"}
    assert same(before, weights(alternation))
    assert alternation.trainer.version == 0
    assert written.drifts == [None] * len(records), "the distance of perturbed samples is no drift of the base"
    assert [(steps, rate) for _, steps, rate in written.adapted] == [(7, 3.0)] * len(records)
    for post in written.posted:
        assert post.stages == [1] * SEEDS + [2] * SEEDS + [1, 2], "of the first seed a perturbed one too"
    assert len(written.posted) == 2 * len(records), "twice the prompts of other rounds"
    for record in records:
        assert record.rewards.gain == record.generator.drift == {1: None, 2: None}
        assert record.health.trouble is None


def test_no_perturbation_pays_for_no_reference_sample(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against twice the reward calls that were asked for."""
    written = Written(helped, good)
    rounds(run_in(one_level_model_path, tmp_path, written, perturbation=0.0), 1)
    assert [post.stages for post in written.posted] == [[1] * SEEDS + [2] * SEEDS] * 2


def test_the_surrogate_settles_once_and_training_follows_that_one(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: the generator still follows the version of before, or every round settles again."""
    written = Written(helped, good)
    alternation = run_in(one_level_model_path, tmp_path, written)
    ranking = until(alternation, "pilot")
    done = len(ranking)
    assert ranking[-1].event is not None
    assert all(record.event is None for record in ranking[:-1])
    assert written.settled == [(done, math.ceil(2.0 * 2 * done / 2))], "each of two groups a round twice, two at a step"
    assert alternation.surrogate_version == written.followed[-1] == SETTLED + done
    pilot = until(alternation, "training")
    assert {record.phase for record in pilot} == {"pilot"}
    assert [record.policy_version for record in pilot] == [UPDATES * (n + 1) for n in range(len(pilot))]
    assert [(steps, rate) for _, steps, rate in written.adapted[done:]] == [(7, 1.0)] * len(pilot)
    first, *others = written.posted[2 * done :]
    assert len(first.stages) == 2 * SEEDS, "the base needs no reference samples of itself"
    assert all(len(post.stages) == 4 * SEEDS for post in others)
    targets = [record.generator.drift_target for record in pilot]
    assert all(target is not None and target <= PILOT_SHARE * 0.4 + 1e-9 for target in targets)
    (record,) = rounds(alternation, 1)
    assert record.phase == "training"
    assert record.generator.drift_target is not None
    assert len(written.settled) == 2


def test_ranking_spends_nothing_of_the_drift_budget(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: the longer it ranked, the further a pilot was taken by its first update, to 0.27 of 0.4."""
    alternation = run_in(one_level_model_path, tmp_path, Written(helped, lambda round: 0.7))
    assert len(until(alternation, "pilot")) > 0.1 * ROUNDS
    (record,) = rounds(alternation, 1)
    assert record.generator.drift_target == pytest.approx(FIRST_RADIUS * 0.4)


def test_a_fooled_generator_is_the_base_again_and_the_surrogate_keeps_all(
    one_level_model_path: Path, tmp_path: Path
) -> None:
    """Bug: it goes on from what it was fooled to, or the surrogate that learned from it is thrown away too."""
    written = Written(fooled, good)
    alternation = run_in(one_level_model_path, tmp_path, written)
    start = weights(alternation)
    ranked = len(until(alternation, "pilot"))
    record = alternation.round()
    done = ranked + 1
    while alternation.schedule.restarts == 0:
        record = alternation.round()
        done += 1
        assert done < ROUNDS
    assert record.event is not None
    assert "fooled" in record.event
    assert alternation.trainer.is_base
    assert same(start, weights(alternation))
    assert alternation.best is None
    assert alternation.trainer.version == record.policy_version > 0, "draws are not repeated"
    assert written.settled[-1] == (done, done + ranked), "all groups so far, twice, two at a step"
    assert alternation.surrogate_version == SETTLED + done
    written.gain = helped
    (again,) = rounds(alternation, 1)
    assert (again.phase, again.restarts) == ("pilot", 1)
    assert len(written.posted[-1].stages) == 2 * SEEDS
    assert again.policy_version == record.policy_version + UPDATES
    assert written.followed[-1] == again.surrogate.version == done + 1


@pytest.mark.proof
def test_a_generator_that_is_fooled_for_good_restarts_a_stated_number_of_times(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    """Guards against a run that begins again until its rewards are spent."""
    alternation = run_in(tiny_model_path, tmp_path, Written(fooled, good), max_restarts=1, generator_steps=1)
    records = rounds(alternation, 30)
    assert [record.event is not None and "fooled" in record.event for record in records].count(True) == 1
    assert alternation.schedule.restarts == 1


def test_noise_ends_the_run_with_the_base(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a model that is moved by noise, and a resume that goes on after the end."""
    written = Written(helped, lambda round: 0.5 + 0.02 * (-1) ** round)
    alternation = run_in(one_level_model_path, tmp_path, written)
    records: list[RoundRecord] = []
    while not alternation.over:
        records += rounds(alternation, 1)
    assert len(records) < ROUNDS / 2
    assert alternation.progress.ended == records[-1].event
    assert "looks like noise" in str(records[-1].event)
    assert alternation.trainer.is_base
    assert not written.settled
    alternation.checkpoint()
    resumed = run_in(one_level_model_path, tmp_path, written)
    assert resumed.over
    assert resumed.progress.ended == records[-1].event


@pytest.mark.proof  # runs of all phases, each begun anew in each
@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_resumed_in_any_phase_makes_the_same_rounds(tiny_model_path: Path, tmp_path: Path, overlap: bool) -> None:
    """Bug: a phase, its accuracies and gains, the ratio of the budget, or where the learning rate began is forgotten.

    It is stopped in ranking, where the pilot begins, in it, where the generator begins again, and where it trains.
    """

    def gain(round: int) -> float:
        return fooled(round) if round < 15 else helped(round)

    settings: dict[str, Any] = {"overlap": overlap, "generator_steps": 1, "learning_rate": 0.02, "drift_budget": 0.02}
    whole = run_in(tiny_model_path, tmp_path / "whole", Written(gain, good), **settings)
    records, states, phases = [], [], []
    count = 22
    for done in range(count):
        whole.checkpoint()
        shutil.copytree(tmp_path / "whole", tmp_path / f"{done}")
        phases.append((whole.schedule.phase, whole.schedule.restarts))
        records += rounds(whole, 1)
        states.append(weights(whole))
    assert {("ranking", 0), ("pilot", 0), ("pilot", 1), ("training", 1)} == set(phases)
    begun = [phases.index(phase) for phase in (("pilot", 0), ("pilot", 1), ("training", 1))]
    for stop in (1, begun[0], begun[0] + 2, begun[1], begun[2] + 1):
        resumed = run_in(tiny_model_path, tmp_path / f"{stop}", Written(gain, good), **settings)
        more = min(2, count - stop)
        for index, record in enumerate(rounds(resumed, more), stop):
            assert dataclasses.replace(record, elapsed_s=0.0) == dataclasses.replace(records[index], elapsed_s=0.0)
        assert same(weights(resumed), states[stop + more - 1])
    assert any((record.generator.regulariser_weight or 0) > 1 for record in records), "the budget held it"
    assert whole.drift.state()["ratios"]
