"""One update of the generator with score sources whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shared_update import CurvedScore
from small_trainer import trainer_of

from lasro.config import RunSettings
from lasro.errors import ConfigError, DeviceMemoryError, NonFiniteError
from lasro.models.unet_generator import UNetGenerator
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt
from lasro.training.sampling import draw_noises, generator_for, sample_latents
from lasro_client.run.folder import RunFolder
from lasro_client.run.progress import Progress

PROMPTS = [Prompt("a red star"), Prompt("a blue square")]
FIVE = [*PROMPTS, Prompt("a green ring"), Prompt("a pink heart"), Prompt("a gray cross")]


class Slope:
    """Scores of 0 and 1 in turn, whose gradient is the same number everywhere."""

    max_timestep = 200

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(len(prompts)).float() % 2, torch.full_like(latents_BCHW, self.slope)


class TooLarge(Slope):
    """A GPU that is full, as torch says it."""

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 79 GiB in all.")


class Asked(Slope):
    """The same, and for which prompts it was asked."""

    def __init__(self, slope: float) -> None:
        super().__init__(slope)
        self.prompts: list[list[str]] = []

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert len(latents_BCHW) == len(timesteps_B) == len(noise_BCHW) == len(prompts)
        self.prompts.append(prompts)
        return super().score_and_gradient(latents_BCHW, timesteps_B, noise_BCHW, prompts)


@pytest.fixture
def trainer(one_level_model_path: Path) -> GeneratorTrainer:
    return trainer_of(one_level_model_path)


def values(trainer: GeneratorTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.parameters]


def test_a_fresh_adapter_is_the_base(trainer: GeneratorTrainer) -> None:
    """Guards against a regulariser that pulls an untouched generator somewhere: it must start at exactly zero."""
    assert trainer.step(PROMPTS, Slope(0.0)).regulariser == 0.0


def test_the_regulariser_adds_both_steps(trainer: GeneratorTrainer) -> None:
    """Guards against averaging the steps, and against a base for the second one that starts from its own first one."""
    trainer.step(PROMPTS, Slope(1.0))
    model, conditioning = trainer.model, trainer.model.embed([prompt.text for prompt in PROMPTS])
    noises = draw_noises(model, len(PROMPTS), generator_for(trainer.seed, "generator", trainer.version))
    with torch.no_grad():
        z_1, z_2 = sample_latents(model, noises, conditioning)
        steps = model.steps(2)
        inputs = [noises[0], model.next_input(noises[0], z_1, noises[1], *steps)]
        bases = [
            model.predict_clean(x_t, step, conditioning, base=True) for x_t, step in zip(inputs, steps, strict=True)
        ]
    expected = [(z - base).square().mean().item() for z, base in zip((z_1, z_2), bases, strict=True)]
    assert min(expected) > 0
    assert trainer.step(PROMPTS, Slope(1.0)).regulariser == pytest.approx(sum(expected), rel=1e-4)


def test_a_gradient_that_is_not_finite_is_not_applied(trainer: GeneratorTrainer) -> None:
    """Guards against NaN entering the optimiser: nothing may move, neither weights nor average nor count."""
    before = values(trainer)
    with pytest.raises(NonFiniteError, match="gradient norm nan"):
        trainer.step(PROMPTS, Slope(float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(before, values(trainer), strict=True))
    assert trainer.version == 0
    assert not trainer.optimiser.state


def test_a_full_gpu_is_told_with_what_to_lower(trainer: GeneratorTrainer) -> None:
    """Guards against a traceback of torch's for the commonest trouble of a first run."""
    with pytest.raises(
        DeviceMemoryError, match=r"update 0 of 2 prompts: CUDA out of memory; lower train\.micro_batch_size"
    ):
        trainer.step(PROMPTS, TooLarge(1.0))
    assert trainer.version == 0


def test_state_brings_back_the_very_next_update(trainer: GeneratorTrainer) -> None:
    """Guards against a checkpoint without the optimiser or the moments: the update after it must be the same."""
    trainer.step(PROMPTS, Slope(1.0))
    kept, version, method = trainer.state(), trainer.version, trainer.method.state()
    kept = {name: tensor.clone() for name, tensor in kept.items()}
    trainer.step(PROMPTS, Slope(1.0))
    expected = values(trainer)
    trainer.load_state(kept, version, method)
    trainer.step(PROMPTS, Slope(1.0))
    assert all(torch.equal(a, b) for a, b in zip(expected, values(trainer), strict=True))
    assert any(tensor.abs().max() > 0 for tensor in trainer.average)


def test_a_part_of_the_prompts_takes_the_second_step(one_level_model_path: Path) -> None:
    """Guards against prompts that get another prompt's latents, and against the second step weighing as its part."""
    asked = Asked(1.0)
    alone = {"one_step_weight": 0.0}
    norms = [trainer_of(one_level_model_path, alone, two_step_every=n).step(FIVE, asked).grad_norm for n in (1, 2)]
    five = [prompt.text for prompt in FIVE]
    assert asked.prompts == [five, five, five, five[::2]]
    assert norms[1] == pytest.approx(norms[0], rel=0.2)


def test_no_prompt_for_the_second_step_is_refused(one_level_model_path: Path) -> None:
    """Guards against the mean of no sample, which is NaN."""
    with pytest.raises(ConfigError, match=r"two_step_every: got 0, expected at least 1"):
        trainer_of(one_level_model_path, batch_size=4, two_step_every=5)


def test_micro_batches_make_the_same_update_in_less_at_a_time(one_level_model_path: Path) -> None:
    """Guards against rows that get another row's prompt, noise or weight, against moments of a part of the batch, and
    against a network that holds the whole batch all the same."""
    whole, parts = trainer_of(one_level_model_path), trainer_of(one_level_model_path, micro_batch_size=2)
    rows: list[int] = []
    assert isinstance(parts.model, UNetGenerator)
    parts.model.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    whole.step(PROMPTS, CurvedScore())
    parts.load_state(whole.state(), whole.version, whole.method.state())
    statistics = [trainer.step(FIVE, CurvedScore()) for trainer in (whole, parts)]
    assert max(rows) == 2
    found, expected = ([*each[:2], *each.scores.values(), *each[3:]] for each in reversed(statistics))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)
    gradients = [
        torch.cat([p.grad.flatten() for p in each.parameters if p.grad is not None]) for each in (whole, parts)
    ]
    assert (gradients[1] - gradients[0]).norm() <= 1e-4 * gradients[0].norm()


def test_a_generator_that_begins_again_is_the_base_and_repeats_no_draw(one_level_model_path: Path) -> None:
    """Bug: the second beginning is trained on the first one's noise and scale of scores, at the rate that it had
    reached, or without reference samples since it does not count as the base."""
    trainer, fresh = (trainer_of(one_level_model_path, warmup_steps=4) for _ in range(2))
    start, first = values(trainer), trainer.method.state()
    for _ in range(3):
        trainer.step(PROMPTS, Slope(1.0))
    assert not trainer.is_base
    trainer.begin_again()
    assert trainer.is_base
    assert (trainer.version, trainer.first_version) == (3, 3)
    assert trainer.method.state() == first
    assert not trainer.optimiser.state
    for one, other in zip(start, trainer.average, strict=True):
        assert torch.equal(one, other)
    trainer.step(PROMPTS, Slope(1.0))
    assert trainer.optimiser.param_groups[0]["lr"] == trainer.settings.learning_rate / 4
    assert (trainer.version, trainer.is_base) == (4, False)
    again = values(trainer)
    fresh.step(PROMPTS, Slope(1.0))
    assert not all(torch.equal(*pair) for pair in zip(again, values(fresh), strict=True)), "other draws"
    fresh.restart(fresh.seed)
    fresh.version = fresh.first_version = 3
    fresh.step(PROMPTS, Slope(1.0))
    assert all(torch.equal(*pair) for pair in zip(again, values(fresh), strict=True)), "and nothing else"


def test_an_adapter_to_begin_with_is_what_it_begins_again_with(one_level_model_path: Path) -> None:
    """Guards against a restart that throws away what the run was given, or that takes it for the base."""
    trainer = trainer_of(one_level_model_path)
    given = [value + 0.01 for value in values(trainer)]
    trainer.start_from(given)
    trainer.step(PROMPTS, Slope(1.0))
    trainer.begin_again()
    assert all(torch.equal(*pair) for pair in zip(given, values(trainer), strict=True))
    assert not trainer.is_base


def test_a_second_beginning_outlives_its_checkpoint(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: after a resume the generator is no base any more, or its learning rate has risen and fallen already."""
    config = RunSettings.model_validate(
        {"name": "n", "prompts": {"train": "t", "held_out": "h"}, "rewards": [{"name": "r"}]}
    )
    folder = RunFolder(tmp_path, config, "train")
    trainer, resumed = (trainer_of(one_level_model_path, warmup_steps=4, decay_steps=9) for _ in range(2))
    for _ in range(2):
        trainer.step(PROMPTS, Slope(1.0))
    trainer.begin_again()
    folder.checkpoint(Progress(round=2, surrogate_version=1), trainer)
    folder.start(resumed)
    assert (resumed.is_base, resumed.version, resumed.first_version) == (True, 2, 2)
    for each in (trainer, resumed):
        each.step(PROMPTS, Slope(1.0))
    assert resumed.optimiser.param_groups[0]["lr"] == trainer.optimiser.param_groups[0]["lr"]
    assert all(torch.equal(*pair) for pair in zip(values(trainer), values(resumed), strict=True))
