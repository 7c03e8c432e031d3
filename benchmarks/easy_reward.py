"""Does each method raise a reward that is easy, so that where it fails it is no bug?

    python -m benchmarks.easy_reward --rounds 20 --seeds 0 1 2

The reward is linear in the latent: the mean of its first channel. Nothing is decoded and no service is started: rounds
are drawn as a run draws them, and the reward is computed here. Methods that follow a surrogate are given the reward
itself, with its gradient. What is measured is the gain over the frozen base of the same, unseen noise.

Shape legend: B samples, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lasro.config import ModelSettings, RunSettings, TrainSettings
from lasro.methods.registry import create_trainer
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.num_steps import NumSteps
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.prompts import Prompt
from lasro.training.rewarded_group import RewardedGroup
from lasro.training.sampling import draw_group_noises, draw_noises, generator_for, sample_latents
from lasro.wire import pack_prompts, pack_tensors

Reward = Callable[[Tensor], Tensor]
"""Of latents [B, C, H, W], [B]."""
PROMPTS = [Prompt("a red star"), Prompt("a blue square"), Prompt("a green ring"), Prompt("a pink heart")]


def linear_reward(model: GeneratorModel, channel: int = 0) -> Reward:
    """The mean of a channel: what a brightness or redness is, where the decoder is linear."""
    return lambda z_BCHW: z_BCHW[:, channel].mean((1, 2)) * model.latent_shape[1]


@torch.no_grad()
def rewarded_groups(
    trainer: GeneratorTrainer,
    reward: Reward,
    round: int = 0,
    prompts: Sequence[Prompt] = PROMPTS,
) -> list[RewardedGroup]:
    """A group for each prompt, of own samples and, once there was an update, of the base's too."""
    model, settings, found = trainer.model, trainer.settings, []
    for index, prompt in enumerate(prompts):
        draws, most = generator_for(trainer.seed, "train", round, index), max(settings.steps)
        noises = draw_group_noises(model, settings.seeds_per_prompt, settings.second_step_draws, draws, most)
        own, base = (_totals(model, settings, prompt, noises, reward, of_base) for of_base in (False, True))
        found.append(RewardedGroup(prompt, noises, own, {} if trainer.is_base else base))
    return found


def _totals(
    model: GeneratorModel, settings: TrainSettings, prompt: Prompt, noises: list[Tensor], reward: Reward, base: bool
) -> dict[NumSteps, Tensor]:
    conditioning = model.embed([prompt.text]).repeat_each(settings.seeds_per_prompt)
    latents = sample_latents(model, noises, conditioning, base, settings.steps)
    return {n: reward(z_BCHW).double().cpu() for n, z_BCHW in zip(settings.steps, latents, strict=True)}


def train_rounds(trainer: GeneratorTrainer, reward: Reward, rounds: int) -> list[StepStatistics]:
    """As many rounds, each with `train.generator_steps` updates; what the updates said."""
    found = []
    for round in range(rounds):
        if not trainer.method.learns_from_rewards:
            found += [trainer.step(PROMPTS, Exact(reward)) for _ in range(trainer.settings.generator_steps)]
        elif trainer.observe(rewarded_groups(trainer, reward, round)):
            found += [trainer.step(PROMPTS, None) for _ in range(trainer.settings.generator_steps)]
    return found


class Exact:
    """A surrogate that is the reward."""

    max_timestep = 1

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    def score_and_gradient(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, noise_BCHW: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        leaf = latents_BCHW.detach().requires_grad_()
        with torch.enable_grad():
            scores_B = self.reward(leaf)
            (gradient_BCHW,) = torch.autograd.grad(scores_B.sum(), leaf)
        return scores_B.detach(), gradient_BCHW


@torch.no_grad()
def gain(trainer: GeneratorTrainer, reward: Reward, count: int = 64) -> tuple[float, float]:
    """Mean of own reward - base's of the same unseen noise in the most of `train.steps`, and its standard error."""
    model, draws = trainer.model, generator_for("gain")
    noises = draw_noises(model, count, draws, max(trainer.settings.steps))
    conditioning = model.embed([PROMPTS[i % len(PROMPTS)].text for i in range(count)])
    own, base = (sample_latents(model, noises, conditioning, base=of_base)[-1] for of_base in (False, True))
    change_B = (reward(own) - reward(base)).double()
    return change_B.mean().item(), (change_B.std() / count**0.5).item()


METHODS: dict[str, dict[str, Any]] = {
    "lasro": {},
    "rlcm": {},
    "ddpo": {},
    "rebel": {},
    "pso-online": {},
    "pso-offline": {},
    "diffusion-dpo": {},
    "gors": {"sample_weight": "none"},
    "reward-guided-lcd": {},
    "noise-tilting": {"regulariser_weight": 0.1},
}
"""What is set of each besides its type."""


def trainer_of(model_path: str, kind: str, seed: int, folder: Path, train: dict[str, Any]) -> GeneratorTrainer:
    """Of a fresh adapter; the distillation of `reward-guided-lcd` has the model itself as teacher, and its samples."""
    method = {"type": kind} | METHODS[kind]
    if kind == "reward-guided-lcd":
        method |= {"teacher": str(teacher_folder(model_path)), "teacher_latents": str(folder / "latents.safetensors")}
        write_latents(model_path, folder / "latents.safetensors", [prompt.text for prompt in PROMPTS] * 4)
    config = RunSettings.model_validate(
        {
            "name": "easy",
            "seed": seed,
            "model": {"path": model_path, "device": "cpu", "autocast": "none"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "method": method,
            "train": {"drift_budget": "none", "warmup_steps": 1, "batch_size": 8, "generator_steps": 2} | train,
        }
    )
    return create_trainer(config, load_model(config.model))


def teacher_folder(model_path: str) -> Path:
    """The diffusers folder of the model: as good a teacher as any, where only the reward is of interest."""
    return Path(str(files("lasro"))) / "assets" / "tiny-sdxl-lcm" if model_path == "bundled" else Path(model_path)


@torch.no_grad()
def write_latents(model_path: str, file: Path, prompts: list[str]) -> None:
    """A two-step sample of the base for each prompt, with these prompts."""
    model = load_model(ModelSettings(path=model_path, device="cpu"))
    noises = draw_noises(model, len(prompts), generator_for("latents"))
    latents = sample_latents(model, noises, model.embed(prompts))[-1]
    file.write_bytes(pack_tensors({"latents": latents.numpy()}, {"prompts": pack_prompts(prompts)}))


def measure(model_path: str, kind: str, seed: int, rounds: int, train: dict[str, Any]) -> dict[str, Any]:
    """The gain after so many rounds, its standard error over noises, and what it took."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model_path, kind, seed, Path(folder), train)
        reward = linear_reward(trainer.model)
        train_rounds(trainer, reward, rounds)
    mean, sem = gain(trainer, reward)
    return {"method": kind, "seed": seed, "gain": mean, "sem": sem, "seconds": round(time.monotonic() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="bundled", help="a diffusers folder")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2], help="the gain is that of the most")
    parser.add_argument("--seeds-per-prompt", type=int, default=4)
    parser.add_argument("--second-step-draws", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    given = parser.parse_args()
    names = ("steps", "seeds_per_prompt", "second_step_draws", "learning_rate")
    train = {name: getattr(given, name) for name in names}
    print(json.dumps(vars(given) | {"device": platform.machine(), "threads": torch.get_num_threads()}))
    for kind in given.methods:
        for seed in given.seeds:
            found = measure(given.model, kind, seed, given.rounds, train)
            print(json.dumps(found | {"errors": round(found["gain"] / found["sem"], 1)}), flush=True)


if __name__ == "__main__":
    main()
