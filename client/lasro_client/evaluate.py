"""Draw held-out prompts with fixed seeds in one and two steps, and score them through the reward API.

before = evaluate(model, prompts, ["attribute-binding"], client, seed=10_000, folder=run / "evaluation/before")
table = summary_table(before, after)

Shape legend: B images of a batch, HWC pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator

from lasro import two_step
from lasro.backbone import TwoStepModel
from lasro.errors import NotFoundError, StorageError, WireError
from lasro.wire import Finite, Message, Name, ScoredItem, ScoreRequest, Status, explain
from lasro_client.files import png_bytes, write_atomically
from lasro_client.noise import diffusers_noises
from lasro_client.paired import Comparison, compare
from lasro_client.prompts import Prompt
from lasro_client.reward_client import RewardClient

STAGES = ("one_step", "two_step")
STAGE_FOLDERS = {"one_step": "one", "two_step": "two"}
LARGEST_BATCH = 32
# Of a batch, before it is cut: 32 latents of 16x16, or 4 of 128x128, fit where training fits.
LATENT_CELLS_PER_BATCH = 1 << 16

Progress = Callable[[int, int], None]
"""Called with prompts done and prompts in all."""


class StageScores(Message):
    """One reward's raw scores in prompt order; None where scoring failed."""

    one_step: list[Finite | None]
    two_step: list[Finite | None]


class Evaluation(Message):
    """What `evaluate` found; prompt i was drawn with `seed + i`."""

    prompts: list[str] = Field(min_length=1)
    seed: int
    rewards: dict[Name, StageScores]
    failures: dict[Name, dict[str, int]] = Field(
        default_factory=dict, description="why scores are missing: count per status, for rewards with any"
    )

    @model_validator(mode="after")
    def _one_score_per_prompt(self) -> Evaluation:
        for name, scores in self.rewards.items():
            for stage in STAGES:
                if (count := len(getattr(scores, stage))) != len(self.prompts):
                    raise ValueError(f"rewards.{name}.{stage}: got {count} scores, expected {len(self.prompts)}")
        return self


def batch_size(latent_shape: tuple[int, int, int]) -> int:
    """Images drawn together: as many as fit for latents of this [C, H, W], at least one."""
    _, height, width = latent_shape
    return min(LARGEST_BATCH, max(1, LATENT_CELLS_PER_BATCH // (height * width)))


def draw_both_stages(
    model: TwoStepModel, prompts: Sequence[str], seeds: Sequence[int], base: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """One-step and two-step images of each prompt, both uint8 [B, H, W, 3], as stock diffusers draws them.

    By the model with its adapter, or by the frozen base where `base` is set.

    Both come from one pass: a single-step sample uses the first noise at timestep 999 and ends there, which is
    exactly the clean latent that the two-step sampler noises again.
    """
    noises = [noise.to(model.device) for noise in diffusers_noises(seeds, model.latent_shape, steps=2)]
    with torch.no_grad():
        conditioning = model.embed(list(prompts))
        one_step, last = two_step.sample(
            lambda latents, timestep: model.predict_clean(latents, timestep, conditioning, base=base),
            noises,
            two_step.lcm_timesteps(2),
            model.alphas_cumprod_T,
        )
        return model.decode(one_step), model.decode(last)


def evaluate(
    model: TwoStepModel,
    prompts: Sequence[Prompt],
    rewards: Sequence[str],
    client: RewardClient,
    seed: int,
    folder: Path | None = None,
    progress: Progress | None = None,
    base: bool = False,
) -> Evaluation:
    """Score one- and two-step images of all prompts with any registered rewards; prompt i is drawn with seed + i.

    By the model with its adapter, or by the frozen base where `base` is set.

    Images go to `folder`/one and /two as 00000.png ... where a folder is given. An item that a reward could not
    score stays None and is counted in `failures`; whole requests that fail raise what the client raises.
    """
    items: dict[str, list[ScoredItem]] = {stage: [] for stage in STAGES}
    step = batch_size(model.latent_shape)
    for start in range(0, len(prompts), step):
        batch = prompts[start : start + step]
        seeds = range(seed + start, seed + start + len(batch))
        images = draw_both_stages(model, [prompt.text for prompt in batch], seeds, base)
        for stage, images_BHWC in zip(STAGES, images, strict=True):
            pngs = [png_bytes(image) for image in images_BHWC]
            if folder is not None:
                _save(folder / STAGE_FOLDERS[stage], start, pngs)
            items[stage] += _score(client, batch, pngs, rewards)
        if progress is not None:
            progress(start + len(batch), len(prompts))
    return _gather([prompt.text for prompt in prompts], seed, rewards, items)


def _save(folder: Path, start: int, pngs: Sequence[bytes]) -> None:
    for index, png in enumerate(pngs, start):
        write_atomically(folder / f"{index:05d}.png", png)


def _score(
    client: RewardClient, batch: Sequence[Prompt], pngs: Sequence[bytes], rewards: Sequence[str]
) -> list[ScoredItem]:
    request = ScoreRequest(
        prompts=[prompt.text for prompt in batch],
        images=list(pngs),
        rewards=list(rewards),
        metadata=[prompt.metadata for prompt in batch],
        objective=None,
    )
    items = client.score(request).items
    if len(items) != len(batch):
        raise WireError(f"score: got {len(items)} items for {len(batch)} images, expected one each")
    if missing := [name for name in rewards if any(name not in item.scores for item in items)]:
        raise WireError(f"score: got no score of {missing}, expected every reward asked for")
    return items


def _gather(
    prompts: list[str], seed: int, rewards: Sequence[str], items: dict[str, list[ScoredItem]]
) -> Evaluation:
    scores, failures = {}, {}
    for name in rewards:
        scores[name] = StageScores(
            **{stage: [item.scores[name].score for item in items[stage]] for stage in STAGES}
        )
        statuses = Counter(
            str(item.scores[name].status)
            for stage in STAGES
            for item in items[stage]
            if item.scores[name].status is not Status.OK
        )
        if statuses:
            failures[name] = dict(statuses)
    return Evaluation(prompts=prompts, seed=seed, rewards=scores, failures=failures)


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write it as JSON, atomically."""
    write_atomically(path, evaluation.model_dump_json(indent=1).encode())


def load_evaluation(path: Path) -> Evaluation:
    """Read what `save_evaluation` wrote; raises NotFoundError or StorageError."""
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such evaluation; run `lasro evaluate` first") from error
    except ValidationError as error:
        raise StorageError(
            f"{path}: not an evaluation ({explain(error)}); delete it and evaluate again"
        ) from error


def summary_table(before: Evaluation, after: Evaluation) -> dict[str, dict[str, dict[str, Any]]]:
    """Reward -> stage -> before, after, difference (mean, sem), n and failed: the `rewards` of summary.json.

    Both must be of the same prompts and seeds; a reward is listed where both have it. All three figures are over
    the items scored both times.
    """
    if before.prompts != after.prompts or before.seed != after.seed:
        raise WireError("evaluations of different prompts or seeds, expected the same for a paired difference")
    return {
        name: {
            stage: _row(compare(getattr(scores, stage), getattr(after.rewards[name], stage))) for stage in STAGES
        }
        for name, scores in before.rewards.items()
        if name in after.rewards
    }


def _row(comparison: Comparison) -> dict[str, Any]:
    return {
        "before": comparison.before.as_dict(),
        "after": comparison.after.as_dict(),
        "difference": comparison.difference.as_dict(),
        "n": comparison.difference.n,
        "failed": comparison.difference.failed,
    }
