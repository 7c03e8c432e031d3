"""Reward-guided LCD on a tiny model that is its own teacher, with a score that is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from shared_update import PROMPTS, CurvedScore
from small_trainer import trainer_of

from lasro.errors import ConfigError
from lasro.functional.noise_schedule import solver_pairs
from lasro.methods.reward_guided_lcd import RewardGuidedLcd
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.wire import pack_prompts, pack_tensors

TEXTS = ["a red star", "a blue square", "a green ring"]


def method_of(model: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    path = folder / "latents.safetensors"
    path.write_bytes(pack_tensors({"latents": latents}, {"prompts": pack_prompts(TEXTS)}))
    return {"type": "reward-guided-lcd", "teacher": str(model), "teacher_latents": str(path)} | settings


def rg_trainer(model: Path, folder: Path, **settings: Any) -> GeneratorTrainer:
    train = {"steps": settings.pop("steps", (1, 2)), "warmup_steps": 1, "learning_rate": 3e-3, "clip_norm": 1e9}
    return trainer_of(model, method_of(model, folder, **settings), **train)


def test_its_predictions_are_those_of_the_drawn_timesteps(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against predictions of the sampler's steps, and a base that is predicted at others."""
    trainer = rg_trainer(one_level_model_path, tmp_path)
    assert isinstance(trainer.method, RewardGuidedLcd)
    draws = torch.Generator().manual_seed(0)
    samples = trainer.method._predictions(trainer, 4, draws)
    again = torch.Generator().manual_seed(0)
    rows, steps = (torch.randint(0, most, (4,), generator=again) for most in (3, 50))
    noise, t = torch.randn(4, 4, 8, 8, generator=again), solver_pairs(50)[0][steps]
    x_t = trainer.model.diffuse(trainer.method.data.latents_NCHW[rows], noise, t)
    assert [prompt.text for prompt in samples.prompts] == [TEXTS[row] for row in rows.tolist()]
    with torch.no_grad():
        expected = trainer.model.predict_at(x_t, t, trainer.model.embed([TEXTS[row] for row in rows.tolist()]))
    torch.testing.assert_close(samples.z_BCHW, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(samples.z_base_BCHW, expected, rtol=1e-4, atol=1e-4)


def test_an_update_distils_and_ascends(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a term that is left out: the loss is c L_lcm - mean S[R], and both move the weights."""
    trainer = rg_trainer(one_level_model_path, tmp_path, regulariser_weight=0.5)
    statistics = trainer.step(PROMPTS, CurvedScore())
    score = statistics.scores[1]
    assert score is not None
    assert statistics.scores[2] == score
    assert statistics.regulariser > 0
    assert statistics.loss == pytest.approx(0.5 * statistics.regulariser - score, rel=1e-4, abs=1e-5)
    assert statistics.grad_norm > 0
    resumed = rg_trainer(one_level_model_path, tmp_path, regulariser_weight=0.5)
    resumed.load_state(trainer.state(), trainer.version, trainer.method.state())
    assert resumed.step(PROMPTS, CurvedScore()).loss == pytest.approx(trainer.step(PROMPTS, CurvedScore()).loss)
    longer = rg_trainer(one_level_model_path, tmp_path, steps=(8,), regulariser_weight=0.5).step(PROMPTS, CurvedScore())
    assert longer.scores == {8: pytest.approx(score)}, "what is trained on are no samples of these steps"


def test_a_teacher_that_is_missing_is_refused(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a distillation without a teacher, which is found out after hours, or is another method."""
    for left_out in ({"teacher": None}, {"teacher_latents": None}):
        with pytest.raises(ValidationError, match='regulariser "lcm" needs both teacher and teacher_latents'):
            rg_trainer(one_level_model_path, tmp_path, **left_out)
    with pytest.raises(ValidationError, match='expected "lcm"'):
        rg_trainer(one_level_model_path, tmp_path, regulariser="base")
    with pytest.raises(ConfigError, match=r"method\.teacher_latents: .*gone"):
        rg_trainer(one_level_model_path, tmp_path, teacher_latents=str(tmp_path / "gone"))
