"""Does a surrogate's gradient point the right way? The true reward along a climb of the gradient, in latent space.

    python benchmarks/climb.py SURROGATE.safetensors --config configs/demo.toml

One- and two-step samples of held-out prompts climb the surrogate's gradient in steps of 4 % of their norm; after some
steps they are decoded and given the true reward. A surrogate that only ranks well falls at once; a good one climbs for
several steps first. Pair accuracy does not tell the two apart.

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

from lasro.backbone import Conditioning, TwoStepModel, load_model
from lasro.config import load_config
from lasro.reward_sdk import Reward, load_reward
from lasro.surrogate import SurrogateReward, build_surrogate, draw_augmentation, score_and_gradient
from lasro.two_step import lcm_timesteps, sample
from lasro.wire import unpack_tensors
from lasro_client.paired import estimate
from lasro_client.prompts import read_prompts
from lasro_client.sampling import draw_noises

STEP_SHARE = 0.04
DRAWS = 2
SHOWN_STEPS = (1, 2, 4, 6, 8, 12)


def climb(
    surrogate: SurrogateReward, z: torch.Tensor, conditioning: Conditioning, generator: torch.Generator
) -> torch.Tensor:
    """One step [B, C, H, W] up the gradient, averaged over a few draws of the augmentation."""
    total = torch.zeros_like(z)
    for _ in range(DRAWS):
        timesteps, noise = draw_augmentation(z.shape, surrogate.settings.max_timestep, generator)
        _, gradient = score_and_gradient(
            surrogate, z, timesteps.to(z.device), noise.to(z.device), conditioning, surrogate.settings.serve_autocast
        )
        total += gradient
    length, norm = (t.flatten(1).norm(dim=1)[:, None, None, None] for t in (total, z))
    return z + STEP_SHARE * norm * total / length.clamp_min(1e-12)


def rewards_of(model: TwoStepModel, reward: Reward, z: torch.Tensor, prompts: list[str]) -> list[float | None]:
    images = [Image.fromarray(image) for image in model.decode(z, mixed=True)]
    scores = reward(images, prompts, [None] * len(prompts))
    return [score if isinstance(score, int | float) else None for score in scores]


def measure(config_path: Path, weights: Path, count: int, seed: int) -> dict[str, Any]:
    """Mean change of the true reward after each shown step, per stage, with its standard error."""
    config = load_config(config_path)
    serve = next(reward.serve for reward in config.rewards if reward.serve is not None)
    model, reward = load_model(config.model), load_reward(serve)
    surrogate = build_surrogate(model, config.surrogate)
    tensors, _ = unpack_tensors(weights.read_bytes())
    surrogate.load_trained({name: torch.from_numpy(array) for name, array in tensors.items()})
    prompts = [prompt.text for prompt in read_prompts(config.prompts.held_out)][-count:]
    generator, conditioning = torch.Generator().manual_seed(seed), model.embed(prompts)
    noises = draw_noises(model, len(prompts), generator)
    with torch.no_grad():
        stages = sample(
            lambda x_t, t: model.predict_clean(x_t, t, conditioning), noises, lcm_timesteps(2), model.alphas_cumprod_T
        )
    result: dict[str, Any] = {"n": len(prompts), "seed": seed, "device": f"{model.device} {platform.machine()}"}
    for name, z in zip(("one_step", "two_step"), stages, strict=True):
        base = rewards_of(model, reward, z, prompts)
        result[name] = {"base": estimate(base).as_dict()}
        for step in range(1, max(SHOWN_STEPS) + 1):
            z = climb(surrogate, z, conditioning, generator)
            if step in SHOWN_STEPS:
                after = rewards_of(model, reward, z, prompts)
                change = [None if a is None or b is None else a - b for a, b in zip(after, base, strict=True)]
                result[name][f"change_after_{step}"] = estimate(change).as_dict()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("surrogate", type=Path)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=3)
    given = parser.parse_args()
    result = measure(given.config, given.surrogate, given.prompts, given.seed)
    for stage in ("one_step", "two_step"):
        for name, figure in result[stage].items():
            print(f"{stage}  {name:16} {figure['mean']:+.3f} ± {figure['sem']:.3f}")
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
