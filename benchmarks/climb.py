"""How far can a generator trust a surrogate? The true reward while it follows one that is not adapted.

    python benchmarks/climb.py SURROGATE.safetensors --config configs/demo.toml

A fresh adapter follows the frozen surrogate's gradient; after some updates its averaged weights draw held-out prompts,
which get the true reward. Where that falls while the scores rise, the surrogate was fooled. Pair accuracy tells nothing
of this: a surrogate that ranks at 0.88 may lower the reward from the tenth update on.

Shape legend: B prompts, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lasro.config import RunSettings, load_config
from lasro.methods.registry import create_trainer
from lasro.models.backbone import trunk_of
from lasro.models.base import GeneratorModel
from lasro.models.lora import parameters_set
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate
from lasro.num_steps import JSON_NAMES, ONE_AND_TWO
from lasro.reward_sdk import Reward, load_reward
from lasro.training.prompts import read_prompts
from lasro.training.sampling import draw_noises, draw_prompts, generator_for, sample_latents
from lasro.training.score_source import LocalSurrogate
from lasro_client.evaluation.paired_statistics import estimate
from lasro_client.services.connect import surrogate_weights

Rewards = list[float | None]
NAMES = [JSON_NAMES[n] for n in ONE_AND_TWO]


def local_surrogate(model: GeneratorModel, config: RunSettings, initial: str) -> LocalSurrogate:
    surrogate = build_surrogate(trunk_of(config.surrogate_run, model), config.surrogate)
    surrogate.load_safetensors(surrogate_weights(initial))
    return LocalSurrogate(surrogate)


def served_reward(config: RunSettings) -> Reward:
    """The run's first reward with `serve`, to be called in process."""
    return load_reward(next(reward.serve for reward in config.rewards if reward.serve is not None))


def true_rewards(model: GeneratorModel, reward: Reward, latents_BCHW: Tensor, prompts: list[str]) -> Rewards:
    """The reward of each latent's image, None where it failed."""
    images = [Image.fromarray(image) for image in model.decode(latents_BCHW, mixed=True)]
    scores = reward(images, prompts, [None] * len(prompts))
    return [float(score) if isinstance(score, int | float) else None for score in scores]


@torch.no_grad()
def rewards_of(model: GeneratorModel, reward: Reward, prompts: list[str], seed: int) -> dict[str, Rewards]:
    """The true reward of each prompt's one- and two-step image, on the same noise at every call."""
    noises = draw_noises(model, len(prompts), torch.Generator().manual_seed(seed))
    latents = sample_latents(model, noises, model.embed(prompts))
    return {name: true_rewards(model, reward, z, prompts) for name, z in zip(NAMES, latents, strict=True)}


def change(after: Rewards, before: Rewards) -> dict[str, Any]:
    pairs = zip(after, before, strict=True)
    return estimate([None if a is None or b is None else a - b for a, b in pairs]).as_dict()


def measure(config: RunSettings, initial: str, count: int, updates: int, every: int, seed: int) -> dict[str, Any]:
    """Mean change of the true reward after every few updates, by number of steps, with its standard error."""
    model, reward = load_model(config.model), served_reward(config)
    source, trainer = local_surrogate(model, config, initial), create_trainer(config, model)
    train = read_prompts(config.prompts.train)
    held_out = [prompt.text for prompt in read_prompts(config.prompts.held_out)][-count:]
    before = rewards_of(model, reward, held_out, seed)
    result: dict[str, Any] = {"n": len(held_out), "seed": seed, "device": f"{model.device} {platform.machine()}"}
    result |= {name: {"base": estimate(before[name]).as_dict()} for name in NAMES}
    draws = generator_for(seed, "climb")
    for update in range(1, updates + 1):
        trainer.step(draw_prompts(train, config.train.batch_size, draws), source)
        if update % every == 0:
            with parameters_set(trainer.parameters, trainer.average):
                after = rewards_of(model, reward, held_out, seed)
            for name in NAMES:
                result[name][f"change_after_{update}"] = change(after[name], before[name])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("surrogate", help="`bundled` or a safetensors file")
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", action="append", default=[], help="repeatable")
    parser.add_argument("--prompts", type=int, default=64, help="how many held-out prompts, the last of the file")
    parser.add_argument("--updates", type=int, default=40, help="generator updates")
    parser.add_argument("--every", type=int, default=10, help="updates between measurements")
    parser.add_argument("--seed", type=int, default=3)
    given = parser.parse_args()
    config = load_config(given.config, given.settings)
    result = measure(config, given.surrogate, given.prompts, given.updates, given.every, given.seed)
    for steps in NAMES:
        for name, figure in result[steps].items():
            print(f"{steps}  {name:16} {figure['mean']:+.3f} ± {figure['sem']:.3f}")
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
