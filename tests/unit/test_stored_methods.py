"""PSO offline, Diffusion-DPO and GORS-LCM on a generator that is a straight line, and what they store."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainer import trainer_of as small_trainer
from thread_peers import assert_processes_agree
from toy_generator import ToyGenerator, toy_trainer

from benchmarks.easy_reward import PROMPTS, gain, linear_reward, rewarded_groups, train_rounds
from lasro.errors import ConfigError, ModelError
from lasro.methods.gors import Gors
from lasro.methods.offline_pairs import OfflinePairs, signal_to_noise
from lasro.methods.sample_store import SampleStore
from lasro.methods.stored import StoredMethod
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt

KINDS = ["pso-offline", "diffusion-dpo", "gors"]


def trainer_of(kind: str, method: dict[str, Any] | None = None, **train: Any) -> GeneratorTrainer:
    weights = {"sample_weight": "none"} if kind == "gors" else {}
    return toy_trainer({"type": kind} | weights | (method or {}), **{"drift_budget": None, **train})


def store_of(trainer: GeneratorTrainer) -> SampleStore:
    assert isinstance(trainer.method, StoredMethod)
    return trainer.method.store


@pytest.mark.parametrize(
    ("kind", "steps"),
    [*((kind, (1, 2)) for kind in KINDS), ("pso-offline", (8,)), ("diffusion-dpo", (8,)), ("gors", (2, 8))],
)
def test_an_easy_reward_rises(kind: str, steps: tuple[int, ...]) -> None:
    """Guards against a method that fails for a bug: a reward linear in the latent rises, for three seeds by more than
    four standard errors."""
    gains = []
    for seed in range(3):
        trainer = trainer_of(kind, seeds_per_prompt=8, steps=steps)
        trainer.seed = seed
        reward = linear_reward(trainer.model)
        train_rounds(trainer, reward, 10)
        gains.append(gain(trainer, reward, 8)[0])
    mean, error = torch.tensor(gains).mean().item(), torch.tensor(gains).std().item() / math.sqrt(3)
    assert mean > 0.05
    assert mean > 4 * error


@pytest.mark.parametrize("kind", ["pso-offline", "diffusion-dpo"])
def test_pairs_begin_at_log_2_and_ties_teach_nothing(kind: str) -> None:
    """Guards against a reference that is not the base, and a tie that has a winner."""
    trainer = trainer_of(kind)
    assert not trainer.observe(rewarded_groups(trainer, lambda z_BCHW: torch.full((len(z_BCHW),), 0.3)))
    assert trainer.observe(rewarded_groups(trainer, linear_reward(trainer.model)))
    assert trainer.step(PROMPTS, None).loss == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("kind", ["pso-offline", "diffusion-dpo"])
def test_swapped_rewards_negate_the_first_gradient(kind: str) -> None:
    """Guards against a winner that is not the better one."""
    gradients = []
    for sign in (1, -1):
        trainer = trainer_of(kind, clip_norm=1e9)
        reward = linear_reward(trainer.model)
        trainer.observe(rewarded_groups(trainer, lambda z_BCHW, s=sign, r=reward: s * r(z_BCHW)))
        trainer.step(PROMPTS, None)
        gradients.append(trainer.parameters[0].grad)
    torch.testing.assert_close(gradients[0], -gradients[1])


@pytest.mark.parametrize("steps", [(1, 2), (3,), (2, 4)])
def test_a_pair_is_the_best_and_the_worst_of_a_prompt(steps: tuple[int, ...]) -> None:
    """Guards against latents that are not those of the totals: after an update the generator's samples and the base's,
    of each number of steps, are all told apart by the reward."""
    trainer = trainer_of("pso-offline", seeds_per_prompt=3, reference_seeds=2, steps=steps)
    reward = linear_reward(trainer.model)
    train_rounds(trainer, reward, 1)
    groups = rewarded_groups(trainer, reward, 1)
    trainer.observe(groups)
    stored = store_of(trainer)
    newest = stored.draw(len(stored), torch.Generator().manual_seed(0))
    pairs = {tuple(reward(latents).tolist()) for latents in newest.latents_BMCHW}
    for group in groups:
        totals = torch.cat([*group.own_totals.values(), *group.base_totals.values()])
        wanted = (totals.max().item(), totals.min().item())
        assert any(pair == pytest.approx(wanted, abs=2e-2) for pair in pairs), wanted  # float16


def test_weights_are_signal_to_noise() -> None:
    """Guards against the weight of another timestep: abar / (1 - abar)."""
    model, t = ToyGenerator(), torch.tensor([19, 499, 999])
    abar = model.alphas_cumprod_T[t]
    torch.testing.assert_close(signal_to_noise(model, t), abar / (1 - abar))
    trainer = toy_trainer({"type": "pso-offline"}, model)
    assert isinstance(trainer.method, OfflinePairs)
    assert [each.tolist() for each in trainer.method.timesteps(trainer.schedules.values())] == [[999], [499]]
    longer = [model.steps(n) for n in (2, 4)]
    assert [each.tolist() for each in trainer.method.timesteps(longer)] == [[999, 999, 759, 499], [499, 759, 499, 259]]
    dpo = toy_trainer({"type": "diffusion-dpo"}, model).method
    assert isinstance(dpo, OfflinePairs)
    assert dpo.timesteps([])[0].tolist() == list(range(19, 1000, 20))


def test_gors_takes_the_best_of_each_prompt_or_all_above_a_threshold() -> None:
    """Guards against easy prompts that crowd out the others, and a weight that is not the sample's own total."""
    best = trainer_of("gors")
    reward = linear_reward(best.model)
    groups = [
        group._replace(own_totals={n: values.abs() for n, values in group.own_totals.items()})
        for group in rewarded_groups(best, reward)
    ]
    best.observe(groups)
    assert len(store_of(best)) == len(PROMPTS)
    above = trainer_of("gors", {"threshold": 0.2, "sample_weight": "reward"})
    above.observe(groups)
    kept = [t for group in groups for values in group.own_totals.values() for t in values.tolist() if t >= 0.2]
    drawn = store_of(above).draw(len(kept), torch.Generator().manual_seed(0))
    assert sorted(drawn.weights_B.tolist()) == pytest.approx(sorted(kept))
    nothing = trainer_of("gors", {"threshold": 1e9})
    assert not nothing.observe(groups)


def test_gors_weighs_the_distillation_loss() -> None:
    """Guards against a weight that is lost: r = 1 is the LCM loss, r = 0 adds nothing, and 2 counts twice."""
    model, draws = ToyGenerator(), torch.Generator().manual_seed(0)
    loss = model.distillation_loss(None)
    z, noise = (torch.randn(4, *model.latent_shape, generator=draws) for _ in range(2))
    steps, prompts = torch.tensor([0, 5, 20, 49]), ["a"] * 4
    plain = loss(z, noise, steps, prompts)
    torch.testing.assert_close(loss(z, noise, steps, prompts, weights_B=torch.ones(4)), plain)
    assert loss(z, noise, steps, prompts, weights_B=torch.zeros(4)).item() == 0
    torch.testing.assert_close(loss(z, noise, steps, prompts, weights_B=torch.full((4,), 2.0)), 2 * plain)


def test_gors_refuses_a_weight_below_nothing() -> None:
    """Guards against samples that are pushed away because a reward has another zero."""
    trainer = trainer_of("gors", {"sample_weight": "reward"})
    with pytest.raises(ConfigError, match=r"sample_weight: got reward, but a chosen total .* at least 0"):
        trainer.observe(rewarded_groups(trainer, lambda z_BCHW: linear_reward(trainer.model)(z_BCHW) - 100))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_draws_from_the_same_samples(kind: str) -> None:
    """Guards against a store that a checkpoint forgets: its JSON and its tensors are all of it."""
    trainer = trainer_of(kind)
    reward = linear_reward(trainer.model)
    train_rounds(trainer, reward, 2)
    resumed = trainer_of(kind)
    resumed.load_state(trainer.state(), trainer.version, json.loads(json.dumps(trainer.method.state())))
    resumed.method.load_tensors(trainer.method.tensors())
    losses = []
    for each in (trainer, resumed):
        each.observe(rewarded_groups(each, reward, 2))
        losses.append(each.step(PROMPTS, None).loss)
    assert losses[0] == losses[1]
    assert torch.equal(trainer.parameters[0], resumed.parameters[0])


def test_the_store_keeps_the_newest() -> None:
    """Guards against a store that grows without end, or that forgets what is new."""
    store = SampleStore(2)
    for value in range(4):
        store.add(Prompt(f"p{value}", {"n": value}), torch.full((1, 1, 1, 1), float(value)), value / 2)
    drawn = store.draw(4, torch.Generator().manual_seed(0))
    assert sorted(prompt.text for prompt in drawn.prompts) == ["p2", "p2", "p3", "p3"]
    assert drawn.latents_BMCHW.flatten().tolist() == [2 * weight for weight in drawn.weights_B.tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_does(kind: str) -> None:
    """Guards against stores that hold a share, and losses that are means over one."""
    assert_processes_agree(lambda peers: trainer_of(kind, peers=peers, seeds_per_prompt=3, clip_norm=1e9))


def test_transitions_of_one_step_are_refused() -> None:
    """Guards against a method that learns from nothing; the others of stored samples take one step alone."""
    with pytest.raises(
        ConfigError, match=r"train\.steps: got \[1\], expected 2 or more among them for method.type pso"
    ):
        trainer_of("pso-offline", steps=(1,))
    trainer = trainer_of("diffusion-dpo", steps=(1,))
    assert train_rounds(trainer, linear_reward(trainer.model), 1)[0].scores[1] is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_no_consistency_model_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a loss at timesteps that the model never saw."""
    monkeypatch.delattr(ToyGenerator, "check_consistency")
    with pytest.raises(ModelError, match=f"method.type {kind}: got a ToyGenerator that is no consistency model"):
        trainer_of(kind)


def test_a_teacher_that_is_missing_is_refused(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a run that finds out after its first evaluation."""
    with pytest.raises(ModelError, match=f"teacher {tmp_path}"):
        small_trainer(one_level_model_path, {"type": "gors", "teacher": str(tmp_path)})
    assert isinstance(small_trainer(one_level_model_path, {"type": "gors"}).method, Gors)
