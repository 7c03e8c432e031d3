"""The LCM loss as a regulariser: its boundary, its memory and its share among processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared_update import PROMPTS, CurvedScore

from lasro.config import RunSettings
from lasro.functional.noise_schedule import add_noise
from lasro.methods.registry import create_trainer
from lasro.methods.regulariser import BATCH, LcmRegulariser
from lasro.models.distillation import SOLVER_STEPS
from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator
from lasro.training.distributed import DistributedContext
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.wire import pack_prompts, pack_tensors

TEXTS = [prompt.text for prompt in PROMPTS]


def trainer_of(model: Path, folder: Path, **train: int) -> GeneratorTrainer:
    """Of a model that is its own teacher, away from the base."""
    latents = folder / "latents.safetensors"
    draws = np.random.default_rng(0)
    arrays = {"latents": draws.standard_normal((len(TEXTS), 4, 8, 8), np.float32)}
    latents.write_bytes(pack_tensors(arrays, {"prompts": pack_prompts(TEXTS)}))
    config = RunSettings.model_validate(
        {
            "name": "lcm",
            "model": {"path": str(model), "device": "cpu", "autocast": "none"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "method": {"regulariser": "lcm", "teacher": str(model), "teacher_latents": str(latents)},
            "lora": {"rank": 2},
            "train": train,
        }
    )
    trainer = create_trainer(config, load_model(config.model))
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.02)
    return trainer


def regulariser_of(trainer: GeneratorTrainer) -> LcmRegulariser:
    method: Any = trainer.method
    assert isinstance(method.regulariser, LcmRegulariser)
    return method.regulariser


def test_every_solver_step_is_drawn_the_boundary_too(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: the pair (19, 0) was never drawn, and on all others a constant f has no loss."""
    trainer, drawn = trainer_of(one_level_model_path, tmp_path), set[int]()
    regulariser = regulariser_of(trainer)

    def record(z_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, steps_B: torch.Tensor, *_: Any, **__: Any) -> Any:
        drawn.update(steps_B.tolist())
        return z_BCHW.sum()

    regulariser.distillation_loss = record
    for seed in range(80):
        regulariser(trainer, [], torch.Generator().manual_seed(seed))
    assert drawn == set(range(SOLVER_STEPS))


def test_the_first_pair_ends_at_the_input_of_timestep_0(
    one_level_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: nothing held f to an image. At index 0 its target is x_0 itself, so an f that returns zeros has a loss
    of the size of x_0, and with index 1 next to none. One call may hold both."""
    trainer = trainer_of(one_level_model_path, tmp_path)
    model, loss = trainer.model, regulariser_of(trainer).distillation_loss
    assert isinstance(model, UNetGenerator)
    asked: list[list[int]] = []

    def constant(x_t: torch.Tensor, t: torch.Tensor, *_: Any) -> torch.Tensor:
        asked.append(t.tolist())
        return torch.where(t.reshape(-1, 1, 1, 1) == 0, x_t, torch.zeros_like(x_t))

    draws = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(2, *model.latent_shape, generator=draws) for _ in range(2))
    x_0 = model.predict_at(z, torch.tensor([0, 0]), model.embed(TEXTS[:2]))
    assert torch.equal(x_0, z), "f(x, 0) = x"
    monkeypatch.setattr(model, "predict_at", constant)
    losses = [loss(z, noise, torch.tensor(steps), TEXTS[:2]).item() for steps in ([0, 0], [1, 1], [0, 49])]
    assert asked == [[0, 0], [19, 19], [19, 19], [39, 39], [0, 979], [19, 999]]
    near = add_noise(z, noise, model.sampler.alphas_cumprod_T[19]).abs().mean().item()
    assert losses[0] == pytest.approx(near, rel=0.15)
    assert losses[1] < 1e-6
    assert losses[2] == pytest.approx(losses[0] / 2, rel=0.25)


def gradients(trainer: GeneratorTrainer) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])


def test_micro_batches_and_processes_share_one_loss(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: every process computed all of it, and in one piece whatever `train.micro_batch_size` said."""
    whole, parts = (
        trainer_of(one_level_model_path, tmp_path),
        trainer_of(one_level_model_path, tmp_path, micro_batch_size=2),
    )
    expected = regulariser_of(whole)(whole, [], torch.Generator().manual_seed(0))
    expected.backward()
    assert isinstance(parts.model, UNetGenerator)
    rows: list[int] = []
    parts.model.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    total = 0.0
    for rank in range(3):
        parts.peers = DistributedContext(rank, 3)
        loss = regulariser_of(parts)(parts, [], torch.Generator().manual_seed(0))
        loss.backward()  # adds to what the others left, as the sum over processes does
        total += loss.item()
    assert total == pytest.approx(expected.item(), rel=1e-4)
    assert (gradients(parts) - gradients(whole)).norm() <= 1e-4 * gradients(whole).norm()
    assert max(rows) == 2
    assert sum(rows) == 3 * BATCH - 2, "targets, predictions, and these once more on the way back, but for a lone part"


def test_more_processes_than_rows(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a division by a share of nothing: a process without a row adds nothing."""
    trainer = trainer_of(one_level_model_path, tmp_path)
    trainer.peers = DistributedContext(0, 2 * BATCH)
    assert regulariser_of(trainer)(trainer, [], torch.Generator().manual_seed(0)).item() == 0.0


@pytest.mark.parametrize("allowed", [None, 0.1])
def test_the_base_is_predicted_only_for_a_budget(
    one_level_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: float | None
) -> None:
    """Guards against two passes of the base in every update of a run that is held by the LCM loss alone."""
    trainer, of_base = trainer_of(one_level_model_path, tmp_path, batch_size=2), list[bool]()
    predict = trainer.predict

    def counted(x_t_BCHW: torch.Tensor, step: Any, conditioning: Any, base: bool = False) -> torch.Tensor:
        of_base.append(base)
        return predict(x_t_BCHW, step, conditioning, base)

    monkeypatch.setattr(trainer, "predict", counted)
    trainer.allowed_distance = allowed
    step = trainer.step(PROMPTS[:2], CurvedScore())
    assert of_base.count(True) == (0 if allowed is None else 2)
    assert (step.distance is None) == (allowed is None)
