"""RLCM, DDPO, REBEL and PSO online on a generator that is a straight line, in two steps and in eight."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from thread_peers import assert_processes_agree
from toy_generator import ToyGenerator, toy_trainer

from benchmarks.easy_reward import PROMPTS, gain, linear_reward, rewarded_groups, train_rounds
from lasro.errors import ConfigError
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.rewarded_group import RewardedGroup

KINDS = ["rlcm", "ddpo", "rebel", "pso-online"]


def trainer_of(kind: str, model: ToyGenerator | None = None, **train: Any) -> GeneratorTrainer:
    return toy_trainer({"type": kind}, model, **{"seeds_per_prompt": 8, "drift_budget": None, **train})


@pytest.mark.parametrize("steps", [(1, 2), (8,)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_easy_reward_rises(kind: str, steps: tuple[int, ...]) -> None:
    """Guards against a method that fails at two steps for a bug: a reward linear in the latent rises in two steps and
    in eight, for three seeds by more than four standard errors."""
    gains = []
    for seed in range(3):
        trainer = trainer_of(kind, steps=steps)
        trainer.seed = seed
        reward = linear_reward(trainer.model)
        train_rounds(trainer, reward, 6)
        gains.append(gain(trainer, reward, 8)[0])
    mean, error = torch.tensor(gains).mean().item(), torch.tensor(gains).std().item() / math.sqrt(3)
    assert mean > 0.05
    assert mean > 4 * error


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_that_knows_nothing_moves_nothing_on_average(kind: str) -> None:
    """Guards against a bias of its own: over 40 rounds from the base, the first update's mean gradient along the easy
    direction is 0 within 4 standard errors."""
    draws, slopes = torch.Generator().manual_seed(0), []
    trainer = trainer_of(kind)
    for round in range(40):
        trainer.begin_again()
        if trainer.observe(rewarded_groups(trainer, lambda z_BCHW: torch.rand(len(z_BCHW), generator=draws), round)):
            trainer.step(PROMPTS, None)
            assert trainer.parameters[0].grad is not None
            slopes.append(trainer.parameters[0].grad[0].mean().item())
    values = torch.tensor(slopes, dtype=torch.float64)
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))


def test_every_ratio_is_1_before_the_first_update_and_not_after() -> None:
    """Guards against an old log-probability of other weights or of another path: PPO would clip every sample. At the
    start the loss is the negative mean advantage, which is 0."""
    trainer = trainer_of("rlcm", seeds_per_prompt=16)  # own statistics of each prompt
    trainer.observe(rewarded_groups(trainer, linear_reward(trainer.model)))
    (step,) = trainer.method._steps[2]  # type: ignore[attr-defined]
    log_pi = step.log_pi(trainer.model, step.now(trainer).z_BCHW)
    assert torch.equal(log_pi, step.log_pi_old_A)
    assert trainer.step(PROMPTS, None).loss == pytest.approx(0, abs=1e-6)
    assert (step.log_pi(trainer.model, step.now(trainer).z_BCHW) - step.log_pi_old_A).abs().min() > 0


def test_the_update_has_the_gradient_of_the_score_function() -> None:
    """Guards against a mean over the wrong count, and actions that are not those of the rewards: for D = 1,
    d L / d theta = -mean A sqrt(abar) eps / (sigma CHW)."""
    trainer = trainer_of("ddpo", seeds_per_prompt=4, clip_norm=1e9)
    model = trainer.model
    assert isinstance(model, ToyGenerator)
    groups = rewarded_groups(trainer, linear_reward(model))
    trainer.observe(groups)
    trainer.step(PROMPTS, None)
    r, eps = torch.cat([group.own_totals[2] for group in groups]), torch.cat([group.noises[1] for group in groups])
    A = ((r - r.mean()) / r.std()).float()
    abar = model.alphas_cumprod_T[499]
    score = (abar / (1 - abar)).sqrt() * eps / model.theta.numel()
    torch.testing.assert_close(model.theta.grad, -(A.view(-1, 1, 1, 1) * score).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("D", [1, 2])
def test_every_step_that_adds_noise_is_an_action(D: int) -> None:
    """Guards against a step that is left out, the noise of another step or sample, one sigma for all steps, and weights
    that do not add up to one: for steps of 2 and 4,

    d L / d theta = -sum_k 1/2 mean over k - 1 steps of mean A_k sqrt(abar_s) eps_s / (sigma_s CHW), s the next step.
    """
    trainer = trainer_of("ddpo", steps=(2, 4), seeds_per_prompt=3, second_step_draws=D, clip_norm=1e9)
    model = trainer.model
    assert isinstance(model, ToyGenerator)
    groups = rewarded_groups(trainer, linear_reward(model))
    trainer.observe(groups)
    trainer.step(PROMPTS, None)
    expected = torch.zeros_like(model.theta)
    for k in (2, 4):
        r = torch.cat([group.own_totals[k] for group in groups])
        A = ((r - r.mean()) / r.std()).float().view(-1, 1, 1, 1)
        for i, step in enumerate(model.steps(k)[1:], 1):
            abar, eps = model.alphas_cumprod_T[int(step.time)], torch.cat([group.noises[i] for group in groups])
            score = (abar / (1 - abar)).sqrt() * eps / model.theta.numel()
            expected -= (A * score).mean(0) / (2 * (k - 1))
    torch.testing.assert_close(model.theta.grad, expected, rtol=1e-3, atol=1e-6)


def test_pso_begins_at_log_2_and_a_tied_round_teaches_nothing() -> None:
    """Guards against ties that count for one of the two, and a reference that is not the base."""
    trainer = trainer_of("pso-online")
    assert not trainer.observe(rewarded_groups(trainer, lambda z_BCHW: torch.full((len(z_BCHW),), 0.3)))
    assert trainer.observe(rewarded_groups(trainer, linear_reward(trainer.model)))
    first, later = (trainer.step(PROMPTS, None) for _ in range(2))
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)
    assert later.loss < first.loss


@pytest.mark.parametrize("kind", KINDS)
def test_draws_that_share_a_first_noise_are_compared_alone(kind: str) -> None:
    """Guards against the reward of z1 in what eps is judged by: where the reward is that of z1, which all draws of a
    first noise share, nothing is left to learn."""
    trainer = toy_trainer({"type": kind, "compare_within": "noise"}, seeds_per_prompt=3, second_step_draws=2)
    of_z1 = [
        group._replace(own_totals={2: group.own_totals[1].repeat_interleave(2)} | {1: group.own_totals[1]})
        for group in rewarded_groups(trainer, linear_reward(trainer.model))
    ]
    assert not trainer.observe(of_z1)
    assert trainer.observe(rewarded_groups(trainer, linear_reward(trainer.model)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_sample_is_as_if_it_had_not_been_drawn(kind: str) -> None:
    """Guards against a failed reward that counts as a number: the update stays finite, and its noise has no part."""
    trainer = trainer_of(kind, seeds_per_prompt=3)
    groups = rewarded_groups(trainer, linear_reward(trainer.model))
    broken = [_with_failed(group, 1) for group in groups]
    assert trainer.observe(broken)
    statistics = trainer.step(PROMPTS, None)
    assert math.isfinite(statistics.loss)
    assert math.isfinite(statistics.grad_norm)
    assert statistics.scores[2] == pytest.approx(
        sum(group.own_totals[2][row].item() for group in groups for row in (0, 2)) / (2 * len(groups))
    )
    assert not trainer.observe([_with_failed(group, 0, 1, 2) for group in groups])


def _with_failed(group: RewardedGroup, *rows: int) -> RewardedGroup:
    totals = {num_steps: values.clone() for num_steps, values in group.own_totals.items()}
    totals[2][list(rows)] = math.nan
    return group._replace(own_totals=totals)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_does(kind: str) -> None:
    """Guards against means over a share, and pairs that fall between two processes."""
    assert_processes_agree(lambda peers: toy_trainer({"type": kind}, peers=peers, seeds_per_prompt=3, clip_norm=1e9))


def test_the_drift_budget_holds_it() -> None:
    """Guards against a method that no budget holds: with an allowed distance of 0.1 it ends near that."""
    trainer = trainer_of("pso-online", drift_budget=0.4)
    trainer.allowed_distance = 0.1
    statistics = train_rounds(trainer, linear_reward(trainer.model), 30)
    assert statistics[-1].distance is not None
    assert 0.05 < statistics[-1].distance < 0.2


@pytest.mark.parametrize(
    ("method", "train", "message"),
    [
        ({}, {"overlap": True}, r"train\.overlap: got True, expected False"),
        ({}, {"second_step_rounds": 2}, r"train\.second_step_rounds: got 2, expected 0"),
        ({}, {"gradient_steps": 2}, r"train\.gradient_steps: got 2, expected 1 for method.type rlcm"),
        ({}, {"seeds_per_prompt": 1}, r"train\.seeds_per_prompt: got 1, expected at least 2"),
        ({"compare_within": "noise"}, {}, r"train\.second_step_draws: got 1, expected at least 2"),
    ],
)
def test_what_it_cannot_work_with_is_refused_at_the_start(
    method: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    """Guards against a run that fails after its first evaluation, or silently does something else."""
    with pytest.raises(ConfigError, match=message):
        toy_trainer({"type": "rlcm", **method}, **train)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_alone_is_refused(kind: str) -> None:
    """Guards against a run in which no sample has a likelihood."""
    with pytest.raises(ValidationError, match=r"train\.steps: got \[1\] with a method that learns from the noise"):
        trainer_of(kind, steps=(1,))


def test_a_sampler_without_noise_is_refused() -> None:
    """Guards against a likelihood of a step that is no draw."""
    model = ToyGenerator()
    model.adds_noise = False
    with pytest.raises(ConfigError, match="adds no noise between steps"):
        toy_trainer({"type": "rlcm"}, model)
