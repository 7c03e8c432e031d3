"""An adapter that moves the first noise, on a tiny model: what it draws, what it is penalised by, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shared_update import PROMPTS, CurvedScore
from small_trainer import trainer_of

from lasro.config import ModelSettings
from lasro.errors import ConfigError, ModelError
from lasro.functional.noise_tilting import noise_shift, shift_penalty
from lasro.methods.noise_tilting import mean_square_shift
from lasro.models.registry import load_model
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.sampling import draw_noises, sample_latents

TILTING = {"type": "noise-tilting"}


@pytest.fixture
def trainer(one_level_model_path: Path) -> GeneratorTrainer:
    trainer = trainer_of(one_level_model_path, TILTING, warmup_steps=1, learning_rate=3e-3)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.02)
    return trainer


def test_the_shift_by_hand() -> None:
    """Guards against a shift that is not 0 for an untrained adapter, and one that trains the base."""
    output = torch.tensor([1.0, 5.0], dtype=torch.float64).requires_grad_()
    base = torch.tensor([1.0, 2.0], dtype=torch.float64).requires_grad_()
    shift = noise_shift(output, base)
    assert shift.tolist() == [0, 3]
    assert shift_penalty(shift).item() == 4.5
    shift_penalty(shift).backward()
    assert output.grad is not None
    assert output.grad.tolist() == [0, 3]
    assert base.grad is None
    assert torch.autograd.gradcheck(lambda x: shift_penalty(noise_shift(x, base)), (output,))


def test_the_base_draws_from_the_moved_noise(trainer: GeneratorTrainer) -> None:
    """Guards against an adapter that moves predictions too: z1 and z2 are the base's, of x_tau0 + D."""
    model = trainer.model
    noises, conditioning = draw_noises(model, 2, torch.Generator().manual_seed(0)), model.embed(["a red star"] * 2)
    with torch.no_grad():
        shift = model.noise_shift(noises[0], model.steps(2)[0], conditioning)
        expected = sample_latents(model, [noises[0] + shift, noises[1]], conditioning, base=True)
        for own, base in zip(sample_latents(model, noises, conditioning), expected, strict=True):
            torch.testing.assert_close(own, base, rtol=1e-5, atol=1e-5)
    assert shift.abs().mean() > 1e-3


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_penalty_is_the_mean_square_shift(trainer: GeneratorTrainer, micro_batch_size: int | None) -> None:
    """Guards against a penalty of z1, and micro-batches that count wrongly."""
    trainer.settings = trainer.settings.model_copy(update={"micro_batch_size": micro_batch_size})
    steps = trainer.sample(PROMPTS, trainer.draws())
    with torch.no_grad():
        shift = trainer.model.noise_shift(steps[0].x_t_BCHW, steps[0].step, steps[0].conditioning)
    penalty = mean_square_shift(trainer, steps, trainer.draws())
    assert penalty.item() == pytest.approx(shift.square().mean().item(), rel=1e-5)
    penalty.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trainer.parameters)


def test_updates_climb_the_score(one_level_model_path: Path) -> None:
    """Guards against a descent, and a second step whose missing gradient ends the update."""
    trainer = trainer_of(
        one_level_model_path, TILTING | {"regulariser_weight": 0.0}, warmup_steps=1, learning_rate=3e-3
    )
    first, *_, last = [trainer.step(PROMPTS, Bright()) for _ in range(6)]
    assert last.regulariser > first.regulariser == 0
    assert mean_of(trainer, base=False) > mean_of(trainer, base=True) + 0.01


def test_other_steps_are_taken_with_the_first_among_them(one_level_model_path: Path) -> None:
    """Guards against a second step alone, through which no gradient reaches the noise, and against a gradient through
    all steps that stops at the frozen ones."""
    with pytest.raises(
        ConfigError, match=r"train\.steps: got \[2, 8\], expected 1 among them for method.type noise-til"
    ):
        trainer_of(one_level_model_path, TILTING, steps=(2, 8))
    norms = []
    for gradient_steps in (1, 3):
        method = TILTING | {"regulariser_weight": 0.0, "step_weights": [0.0, 1.0]}
        trainer = trainer_of(one_level_model_path, method, steps=(1, 3), gradient_steps=gradient_steps)
        norms.append(trainer.step(PROMPTS, Bright()).grad_norm)
    assert norms[0] == 0
    assert norms[1] > 0


def test_rounds_of_the_second_step_are_refused(one_level_model_path: Path) -> None:
    """Bug: such rounds compared the base with itself, so all that they taught was the penalty."""
    with pytest.raises(ConfigError, match=r"^train\.second_step_rounds: got 2, expected 0 for method\.type noise-til"):
        trainer_of(one_level_model_path, TILTING, second_step_rounds=2)


class Bright(CurvedScore):
    """The mean of the latents, whose slope is the same everywhere."""

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return latents_BCHW.mean((1, 2, 3)), torch.full_like(latents_BCHW, 1 / latents_BCHW[0].numel())


@torch.no_grad()
def mean_of(trainer: GeneratorTrainer, base: bool) -> float:
    model = trainer.model
    noises = draw_noises(model, 16, torch.Generator().manual_seed(1))
    return sample_latents(model, noises, model.embed(["a red star"] * 16), base)[0].mean().item()


def test_its_file_says_what_it_is(trainer: GeneratorTrainer, one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against an adapter of the noise that is drawn with as if it were one of predictions, or begins a run that
    trains another kind."""
    trainer.average = [parameter.detach().clone() for parameter in trainer.parameters]
    trainer.save(tmp_path)
    model = load_model(ModelSettings(path=str(one_level_model_path), device="cpu"))
    model.load_lora(tmp_path)
    assert model.tilts_noise
    noises = draw_noises(model, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (sample_latents(each, noises, each.embed(["a red star"]))[-1] for each in (trainer.model, model))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="no weights can hold"):
        model.save_fused(tmp_path / "fused")
    other = trainer_of(one_level_model_path)
    with pytest.raises(ModelError, match="was trained to move the first noise"):
        other.model.initial_lora(tmp_path, other.lora)
