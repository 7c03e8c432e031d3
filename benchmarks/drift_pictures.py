"""What a drift looks like: pictures at 0.2, 0.4, 0.6 and 0.8 changes of prompt, to docs/drift.webp.

    python -m benchmarks.drift_pictures

An adapter is trained by the true gradient towards brightness, another towards redness, on emoji and on shapes together.
Then it is scaled, on each set of held-out prompts, until it has drifted that far: one direction, several strengths.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lasro.config import LoraSettings, ModelSettings, TrainSettings
from lasro.config.method import TrueGradientSettings, weights_of
from lasro.methods.base import Method
from lasro.methods.regulariser import distance_to_base
from lasro.methods.true_gradient import TrueGradient
from lasro.models.lora import parameters_set
from lasro.models.registry import load_model
from lasro.num_steps import ONE_AND_TWO
from lasro.torch_reward import TorchReward, torch_reward
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt, read_prompts
from lasro.training.sampling import draw_prompts, generator_for
from lasro_client.evaluation.drift import BaseImages, draw_base, measure_movement
from lasro_client.evaluation.score_prompts import draw_in_steps

LEVELS = (0.2, 0.4, 0.6, 0.8)
PROMPTS = Path(__file__).parents[1] / "configs" / "prompts"
SEED, UPDATES, MEASURED, SHOWN = 10_000, 10, 8, 3
EDGE, GAP, HEAD = 96, 6, 16


@torch_reward
def brightness(images_BCHW: Tensor, prompts: list[str], metadata: list[object]) -> Tensor:
    return images_BCHW.mean((1, 2, 3))


@torch_reward
def redness(images_BCHW: Tensor, prompts: list[str], metadata: list[object]) -> Tensor:
    red, green, blue = images_BCHW.mean((2, 3)).unbind(1)
    return red - (green + blue) / 2


def towards(rewards: Sequence[tuple[float, TorchReward]]) -> Method:
    """The method without a regulariser: how far it goes is chosen afterwards."""
    settings = TrueGradientSettings(type="true-gradient", regulariser_weight=0.0)
    return TrueGradient(settings, distance_to_base, rewards, weights_of(settings, ONE_AND_TWO))


def train(trainer: GeneratorTrainer, reward: TorchReward, sets: Sequence[Sequence[Prompt]]) -> None:
    """Train from the base towards the reward, on as many prompts of each set."""
    trainer.method = towards([(1.0, reward)])
    trainer.restart(SEED)
    draws, count = generator_for(SEED, reward.name), trainer.settings.batch_size // len(sets)
    for _ in range(UPDATES):
        trainer.step([prompt for each in sets for prompt in draw_prompts(list(each), count, draws)], None)


def scale_of(level: float, drift_at: Callable[[float], float]) -> float:
    """The scale of an adapter at which it has drifted that far, by regula falsi: drift is nearly proportional to it."""
    low, high, drifts = 0.0, 1.0, [0.0, drift_at(1.0)]
    while drifts[1] < level:
        high, drifts[1] = 1.5 * high, drift_at(1.5 * high)
    for _ in range(4):
        middle = low + (high - low) * (level - drifts[0]) / (drifts[1] - drifts[0])
        found = drift_at(middle)
        if abs(found - level) < 0.01:
            return middle
        if found < level:
            low, drifts[0] = middle, found
        else:
            high, drifts[1] = middle, found
    return low + (high - low) * (level - drifts[0]) / (drifts[1] - drifts[0])


def strip(trainer: GeneratorTrainer, fresh: Sequence[Tensor], base: BaseImages) -> np.ndarray:
    """Two-step images [SHOWN * EDGE, (1 + levels) * EDGE, 3]: a row a prompt, the base first."""
    trained = [parameter.detach().clone() for parameter in trainer.average]

    def scaled(scale: float) -> list[Tensor]:  # of a fresh LoRA's two factors one is 0; scaled is that one
        return [value if start.any() else scale * value for value, start in zip(trained, fresh, strict=True)]

    def drift_at(scale: float) -> float:
        with parameters_set(trainer.parameters, scaled(scale)):
            mean = measure_movement(trainer.model, base)[2].mean
        assert mean is not None, "the base draws all prompts alike"
        return mean

    columns = [base.images[2][:SHOWN]]
    for level in LEVELS:
        scale = scale_of(level, drift_at)
        with parameters_set(trainer.parameters, scaled(scale)):
            texts = [prompt.text for prompt in base.prompts[:SHOWN]]
            columns.append(list(draw_in_steps(trainer.model, texts, range(SEED, SEED + SHOWN))[2]))
        print(f"drift {level} at scale {scale:.3f}", flush=True)
    return np.concatenate([np.concatenate([_small(image) for image in column]) for column in columns], axis=1)


def _small(image_HWC: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image_HWC).resize((EDGE, EDGE), Image.Resampling.LANCZOS))


def sheet(strips: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """The strips of each reward in a row of their own columns, below what each column is."""
    height, width, _ = strips[0][0].shape
    page = Image.new("RGB", (2 * width + GAP, HEAD + 2 * height + GAP), "white")
    write = ImageDraw.Draw(page)
    for i, of_reward in enumerate(strips):
        for j, title in enumerate(("base", *map(str, LEVELS))):
            write.text((i * (width + GAP) + j * EDGE + 4, 2), title, fill="black")
        for k, one in enumerate(of_reward):
            page.paste(Image.fromarray(one), (i * (width + GAP), HEAD + k * (height + GAP)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("docs/drift.webp"))
    given = parser.parse_args()
    model = load_model(ModelSettings(path="bundled"))
    emoji = read_prompts(PROMPTS / "emoji-drift.txt")
    train_sets = [emoji[:44], read_prompts(PROMPTS / "shapes-train.txt")]
    held_out = [emoji[44:], read_prompts(PROMPTS / "shapes-held-out.txt")]
    bases = [draw_base(model, prompts[:MEASURED], SEED) for prompts in held_out]
    settings = TrainSettings(batch_size=8, two_step_every=2, learning_rate=6e-4, warmup_steps=1, ema=0.5)
    trainer = GeneratorTrainer(model, towards([]), LoraSettings(), settings, SEED)
    fresh = [parameter.detach().clone() for parameter in trainer.parameters]
    strips = []
    for reward in (brightness, redness):
        train(trainer, reward, train_sets)
        strips.append([*map(partial(strip, trainer, fresh), bases)])
    sheet(strips).save(given.out, quality=80, method=6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
