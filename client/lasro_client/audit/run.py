"""Is a reward worth a run? Some images of the base, each scored several times. `lasro rewards audit NAME`.

Images are drawn and grouped as in a run, and scored through the reward API without its cache. `reward_spread` tells
signal from noise, `run.cost` computes what a run will ask of the reward, `findings` judges both, `summary` puts all of
it together, and `picture` shows what the reward likes.

Shape legend: N images, P prompts, G numbers of denoising steps, K seeds, R repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lasro.config import RunSettings, SamplingSettings
from lasro.errors import RewardError
from lasro.files import write_atomically, write_json
from lasro.models.registry import load_model
from lasro.training.prompts import Prompt, read_prompts
from lasro.training.sampling import Group, draw_prompts, generator_for, sample_groups
from lasro.wire import RewardInfo, RewardValue, Status
from lasro_client.audit.picture import draw_picture
from lasro_client.audit.summary import Measured, summarise
from lasro_client.evaluation.score_prompts import Progress, batch_size, score_images
from lasro_client.run.cost import Speed, images_per_round, run_costs
from lasro_client.services.reward_client import RewardClient

LARGEST_REQUEST = 64  # some 100 MB of images of 1024 x 1024
REQUEST_LIMIT_S = 600.0
"""What the reward API gives one request by default."""
ProgressBar = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress of what it is called with, "drawing" or "scoring"."""


def hidden_progress(what: str) -> AbstractContextManager[Progress]:
    """A ProgressBar that shows nothing."""
    return nullcontext(lambda done, total: None)


def audit(
    config: RunSettings,
    name: str,
    client: RewardClient,
    prompts: list[Prompt],
    seeds: int,
    repeats: int,
    out: Path,
    progress_bar: ProgressBar = hidden_progress,
) -> dict[str, Any]:
    """Audit a registered reward for such a run; writes audit.png and audit.json to `out` and returns the latter.

    Raises RewardError for a reward that cannot be reached, before anything is drawn. Images that it then fails to
    score are part of the result.
    """
    held_out = read_prompts(config.prompts.held_out, config.prompts.comments)[: config.evaluation.prompts]
    info = client.reward(name)
    probe = client.probe(name)  # also so that loading its model is not taken for its speed
    if probe.status in (Status.UNREACHABLE, Status.BLOCKED):
        raise RewardError(f"reward {name}: {probe.status} ({probe.error}); see `lasro rewards test {name}`")
    groups = _draw(config, prompts, seeds, progress_bar)
    images = [(group.prompt, png) for group in groups for png in group.images]
    size, speed = request_size(info, images_per_round(config.train, 2)), Speed.registered(info)
    with progress_bar("scoring") as progress:
        rewards_NR, scores, speed = _measure(client, info.name, images, repeats, size, speed, config.seed, progress)
    measured = Measured(rewards_NR.reshape(len(groups), len(config.train.steps), -1, repeats), scores, speed)
    _, channels, height, width = groups[0].latents_BCHW.shape
    costs = run_costs(
        config.train, config.pretrain, len(held_out), batch_size((channels, height, width)), measured.speed
    )
    summary = summarise(config, info, prompts, measured, costs)
    write_atomically(out / "audit.png", draw_picture(summary, groups, measured.rewards_PGKR))
    write_json(out / "audit.json", summary)
    return summary


def choose_prompts(prompts: list[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` different prompts, or all there are, drawn at random."""
    return draw_prompts(prompts, min(count, len(prompts)), generator_for(seed, "audit prompts"))


def _draw(config: RunSettings, prompts: list[Prompt], seeds: int, progress_bar: ProgressBar) -> list[Group]:
    model = load_model(config.model)
    model.check_prompts([prompt.text for prompt in prompts])
    settings = SamplingSettings(steps=config.train.steps, prompts_per_round=1, seeds_per_prompt=seeds)
    groups = []
    with progress_bar("drawing") as progress:
        for index, prompt in enumerate(prompts):
            groups += sample_groups(model, [prompt], settings, config.seed, "audit", index, base=True)
            progress(index + 1, len(prompts))
    return groups


def _measure(
    client: RewardClient,
    reward: str,
    images: Sequence[tuple[Prompt, bytes]],
    repeats: int,
    size: int,
    speed: Speed,
    seed: int,
    progress: Progress,
) -> tuple[np.ndarray, list[RewardValue], Speed]:
    """Score every image `repeats` times, `size` images a request, each time in another order.

    So a score that depends on the other images of a call counts as noise, as it would in a run. Returns rewards [N, R]
    with NaN where one failed, the answers as they came, and the speed with its times.
    """
    rewards_NR = np.full((len(images), repeats), np.nan)
    scores: list[RewardValue] = []
    waves, scoring_s = 0, 0.0
    progress(0, len(images) * repeats)
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(len(images)).tolist()
        for start in range(0, len(images), size):
            chosen = order[start : start + size]
            started_s = time.perf_counter()
            answers = _score(client, reward, [images[index] for index in chosen])
            scoring_s += time.perf_counter() - started_s
            waves += speed.waves(len(chosen))
            rewards_NR[chosen, repeat] = [np.nan if answer.score is None else answer.score for answer in answers]
            scores += answers
            progress(len(scores), len(images) * repeats)
    return rewards_NR, scores, replace(speed, wave_s=scoring_s / waves, image_s=scoring_s / len(scores))


def request_size(info: RewardInfo, images_together: int) -> int:
    """Images per request: as many as a run has scored together, but no more than are scored in time at the slowest.

    That is if each call of the reward takes all of its `timeout_s`.
    """
    waves = max(1, int(REQUEST_LIMIT_S / info.timeout_s))
    in_time = max(1, info.concurrency * waves // info.repeats) * info.images_per_call
    return min(images_together, LARGEST_REQUEST, in_time)


def _score(client: RewardClient, name: str, images: Sequence[tuple[Prompt, bytes]]) -> list[RewardValue]:
    items = score_images(client, [prompt for prompt, _ in images], [png for _, png in images], [name], fresh=True)
    return [item.scores[name] for item in items]
