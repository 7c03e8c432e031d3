"""LaSRO's update: its baseline, its scale and what it remembers, with scores that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shared_update import PROMPTS as FIVE
from shared_update import CurvedScore
from small_trainer import ANY, trainer_of

from lasro.functional.drift_control import holding_weight
from lasro.methods.surrogate_ascent import SurrogateAscent
from lasro.models.unet_generator import UNetGenerator
from lasro.training.generator_trainer import GeneratorTrainer

TWO = FIVE[:2]


class PromptOffsets(CurvedScore):
    """Scores that each prompt raises by a number of its own, which Bradley-Terry cannot know."""

    def __init__(self, offset: float) -> None:
        self.offset = offset
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append((timesteps_B, noise_BCHW))
        R_B, dR_dz_BCHW = super().score_and_gradient(latents_BCHW, timesteps_B, noise_BCHW, prompts)
        return R_B + self.offset * torch.tensor([len(prompt) for prompt in prompts]), dR_dz_BCHW


def moved(
    one_level_model_path: Path, method: dict[str, Any], reward: dict[str, Any] = ANY, **train: Any
) -> GeneratorTrainer:
    """A trainer whose adapter is away from the base."""
    trainer = trainer_of(one_level_model_path, method, reward, **train)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.02)
    return trainer


def test_one_two_step_sample_an_update_has_a_scale(one_level_model_path: Path) -> None:
    """Bug: its deviation was read as 0, so the slope was -5e5 in the first update and 0 in all others."""
    trainer = trainer_of(one_level_model_path, {"one_step_weight": 0.0, "regulariser_weight": 0.0}, two_step_every=5)
    norms = [trainer.step(FIVE, CurvedScore()).grad_norm for _ in range(4)]
    assert min(norms) > 0
    assert max(norms) < 100
    assert isinstance(trainer.method, SurrogateAscent)
    assert trainer.method.moments[1] is not None
    assert trainer.method.moments[1].variance > 0


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_baseline_is_the_bases_score_of_the_same_draws(
    one_level_model_path: Path, micro_batch_size: int | None
) -> None:
    """Guards against a baseline of another timestep, noise or prompt, which adds the variance that it should take
    away, and against a base that is computed twice."""
    trainer = moved(one_level_model_path, {"score_baseline": "base"}, micro_batch_size=micro_batch_size)
    assert isinstance(trainer.model, UNetGenerator)
    assert isinstance(trainer.method, SurrogateAscent)
    rows: list[int] = []
    trainer.model.base.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    source = PromptOffsets(1e4)
    trainer.step(FIVE, source)
    assert sum(rows) == 2 * len(FIVE), "each step's base once"
    half = len(source.asked) // 4
    for k in (0, 2 * half):
        for ours, theirs in zip(source.asked[k : k + half], source.asked[k + half : k + 2 * half], strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    moments, gains = trainer.method.moments[0], trainer.method.gains[0]
    assert moments is not None
    assert gains is not None
    assert moments.variance > 1e8, "the prompts' offsets"
    assert gains.variance < 1e7, "which a difference of two scores has not"


def test_a_baseline_lets_an_untouched_generator_start(one_level_model_path: Path) -> None:
    """Guards against a deviation of differences: at the start z is z_base, all are 0, and nothing would ever move."""
    trainer = trainer_of(one_level_model_path, {"score_baseline": "base"})
    statistics = trainer.step(FIVE, CurvedScore())
    assert statistics.grad_norm > 0
    assert statistics.scores[1] == pytest.approx(0.0, abs=1e-6)
    plain = trainer_of(one_level_model_path).step(FIVE, CurvedScore())
    assert statistics.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4), "the width is that of the scores"


def test_the_maximum_keeps_s_within_one(one_level_model_path: Path) -> None:
    """Guards against a setting that nothing reads: by the maximum no mean of S is beyond 1, and slopes are smaller."""
    trainer, norms = moved(one_level_model_path, {"regulariser_weight": 0.0}), []
    assert isinstance(trainer.method, SurrogateAscent)
    start = {name: tensor.clone() for name, tensor in trainer.state().items()}
    for kind in ("deviation", "maximum"):
        trainer.method.settings = trainer.method.settings.model_copy(update={"score_scale": kind})
        trainer.load_state(start, 0, {"moments": [None, None]})
        norms.append(trainer.step(FIVE, CurvedScore()).grad_norm)
    assert 0 < norms[1] < norms[0]


@pytest.mark.parametrize("method", [{}, {"score_baseline": "base", "score_scale": "maximum"}])
def test_a_state_brings_back_the_very_next_update(one_level_model_path: Path, method: dict[str, Any]) -> None:
    """Guards against a checkpoint that forgets a part of what S remembers."""
    trainer = trainer_of(one_level_model_path, method)
    trainer.step(TWO, CurvedScore())
    kept = {name: tensor.clone() for name, tensor in trainer.state().items()}
    version, state = trainer.version, trainer.method.state()
    expected = trainer.step(FIVE, CurvedScore())
    after = [parameter.detach().clone() for parameter in trainer.parameters]
    trainer.load_state(kept, version, state)
    assert trainer.step(FIVE, CurvedScore()) == expected
    assert all(torch.equal(a, b) for a, b in zip(after, trainer.parameters, strict=True))


def test_moments_of_an_earlier_commit_are_gone_on_with(one_level_model_path: Path) -> None:
    """Guards against a run of an earlier version that cannot be resumed, and against its deviation of 0, which one
    sample an update left: nothing is known then."""
    trainer = trainer_of(one_level_model_path)
    trainer.method.load_state({"moments": [[1.5, 2.0], [7.0, 0.0]]})
    assert isinstance(trainer.method, SurrogateAscent)
    one, two = trainer.method.moments
    assert one is not None
    assert (one.mean, one.variance, two) == (1.5, 4.0, None)
    assert trainer.step(FIVE, CurvedScore()).grad_norm < 1e4
    trainer.method.load_state({"moments": [None, None]})
    assert trainer.method.moments == [None, None]


@pytest.mark.parametrize("method", [{}, {"type": "true-gradient"}])
def test_the_distance_that_is_allowed_raises_the_regularisers_weight(
    one_level_model_path: Path, method: dict[str, str]
) -> None:
    """Guards against a drift budget that one of the methods does not heed."""
    trainer = moved(one_level_model_path, method, {"name": "brightness", "serve": "torch_rewards:brightness"})
    start = {name: tensor.clone() for name, tensor in trainer.state().items()}
    plain = trainer.step(TWO, CurvedScore())
    assert plain.distance is not None
    assert plain.distance == pytest.approx(plain.regulariser**0.5)
    trainer.load_state(start, 0, {} if method else {"moments": [None, None]})
    trainer.allowed_distance = plain.distance / 2
    held = trainer.step(TWO, CurvedScore())
    weight = holding_weight(1.0, plain.regulariser, plain.distance / 2)
    assert held.regulariser == plain.regulariser
    assert held.regulariser_weight == pytest.approx(weight, rel=1e-4)
    assert held.loss - plain.loss == pytest.approx((weight - 1) * plain.regulariser, rel=1e-3)
    assert held.grad_norm != plain.grad_norm
