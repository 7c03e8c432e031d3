"""Which of the two steps earned what an adapter gains at two steps?

    python -m benchmarks.which_step runs/demo/adapter --config configs/demo.toml

Draws the same held-out prompts and noise with the adapter in both steps, in the first alone, in the second alone and in
none, and gives each two-step image its true reward. One network serves both steps, so where the first earns all, the
second's gradient may be estimated from fewer samples (`train.two_step_every`).

Shape legend: B prompts, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.climb import Rewards, change, served_reward, true_rewards
from lasro.config import RunSettings, load_config
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import Conditioning
from lasro.models.registry import load_model
from lasro.training.prompts import read_prompts
from lasro.training.sampling import draw_noises, sample_latents

BY_ADAPTER = {"both": (True, True), "first": (True, False), "second": (False, True)}


@torch.no_grad()
def latents_by(
    model: GeneratorModel, noises: list[Tensor], conditioning: Conditioning, by_adapter: tuple[bool, bool]
) -> Tensor:
    """Two-step latents [B, C, H, W], each step drawn by the adapted generator or by the base."""
    return sample_latents(model, noises, conditioning, base=[not each for each in by_adapter])[-1]


def measure(config: RunSettings, adapter: Path, count: int, seed: int) -> dict[str, Any]:
    """Mean change of the two-step images' true reward, by the steps that the adapter draws."""
    model, reward = load_model(config.model), served_reward(config)
    model.load_lora(adapter)
    prompts = [prompt.text for prompt in read_prompts(config.prompts.held_out)][:count]
    noises = draw_noises(model, len(prompts), torch.Generator().manual_seed(seed))
    conditioning = model.embed(prompts)

    def rewards(by_adapter: tuple[bool, bool]) -> Rewards:
        return true_rewards(model, reward, latents_by(model, noises, conditioning, by_adapter), prompts)

    before = rewards((False, False))
    result: dict[str, Any] = {"n": len(prompts), "seed": seed, "device": f"{model.device} {platform.machine()}"}
    return result | {name: change(rewards(steps), before) for name, steps in BY_ADAPTER.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("adapter", type=Path, help="a folder that `lasro train` wrote")
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--prompts", type=int, default=128, help="how many held-out prompts, the first of the file")
    parser.add_argument("--seed", type=int, default=3)
    given = parser.parse_args()
    result = measure(load_config(given.config), given.adapter, given.prompts, given.seed)
    for name in BY_ADAPTER:
        print(f"adapter in {name:6}  {result[name]['mean']:+.3f} ± {result[name]['sem']:.3f}")
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
