"""Rewards of stage 1's base samples: stage 2 samples the same groups again and preloads its replay with them.

Without them stage 2 starts with an empty replay, and within tens of rounds the surrogate forgets what stage 1 taught
it. The samples of a large model would take gigabytes; the seed of their noise takes no space, and the base is at
hand. `lasro pretrain` writes `base_rewards.jsonl`, a line per round; `train.initial_base_rewards` of a stage-2 run
names it.

Shape legend: K seeds of a prompt, D second-step draws of each; lists of rewards have the K one-step samples first, then
the K D two-step ones, or those of other numbers of steps, fewer ones first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, ValidationError

from lasro.config import Steps, Timesteps, TrainSettings
from lasro.errors import ConfigError
from lasro.models.base import GeneratorModel
from lasro.models.device import device_memory
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro.training.group_summary import GroupSummary
from lasro.training.sampling import draw_group_noises, generator_for, label_samples, sample_latents
from lasro.validation import explain
from lasro.wire import Finite, GroupStatus, GroupSubmission, Message, pack_tensors, scores_of
from lasro_client.services.feedback import FeedbackClient

BASE_REWARDS_FILE = "base_rewards.jsonl"
OLD_BASE_REWARDS_FILE = "labels.jsonl"
"""Of run folders of version 0.1; found until 0.3."""
GROUPS_PER_BATCH = 8
SUFFICIENT_DIGITS = 5
BEFORE_THE_FIRST_ROUND = -1


class GroupRewards(Message):
    """Rewards of one group's base samples."""

    prompt: str
    rewards: dict[str, list[Finite | None]] = Field(description="K + K D each of steps 1, 2; null where one failed")
    second_step_draws: int = Field(default=1, ge=1, description="D")


class RoundRewards(Message):
    """All groups of one round of stage 1; group i drew its noise from (seed, "pretrain", round, i)."""

    seed: int
    round: int
    timesteps: Timesteps | None = Field(default=None, description="of the steps; absent: the scheduler's own")
    steps: Steps | None = Field(default=None, description="numbers of steps of the samples; absent: 1 and 2")
    groups: list[GroupRewards]


class RewardedSeeds(NamedTuple):
    """A group that can be drawn again: the first of the `drawn` seeds that came from `seed`, with their rewards."""

    seed: tuple[object, ...]
    drawn: int
    group: GroupRewards
    timesteps: Timesteps | None = None
    """At which it was sampled."""
    steps: tuple[NumSteps, ...] = ONE_AND_TWO
    """In which."""

    @property
    def samples_per_seed(self) -> list[int]:
        """Of each number of steps, fewest first."""
        return _samples_per_seed(self.group, self.steps)

    @property
    def seeds(self) -> int:
        """K, of those that are drawn again."""
        return _num_seeds(self.group, self.steps)


def base_rewards_of(
    seed: int,
    round: int,
    groups: list[GroupSummary],
    scored: list[GroupStatus],
    timesteps: Timesteps | None = None,
    steps: tuple[NumSteps, ...] = ONE_AND_TWO,
) -> RoundRewards:
    """The rewards of the groups' own samples, which in stage 1 are the base's."""

    def column(group: GroupSummary, status: GroupStatus, name: str) -> list[float | None]:
        rewards = scores_of(status.items or [], name)
        own = [reward for reward, is_reference in zip(rewards, group.is_reference, strict=True) if not is_reference]
        return [None if reward is None else shorten(reward) for reward in own]

    def shorten(reward: float) -> float:
        return float(f"{reward:.{SUFFICIENT_DIGITS}g}")

    found = [
        GroupRewards(
            prompt=group.prompt.text,
            rewards={name: column(group, status, name) for name in (status.items or [])[0].scores},
            second_step_draws=1 + max(group.draws or [0]),
        )
        for group, status in zip(groups, scored, strict=True)
    ]
    said = None if steps == ONE_AND_TWO else steps
    return RoundRewards(seed=seed, round=round, timesteps=timesteps, steps=said, groups=found)


def find_base_rewards(path: Path) -> Path:
    """`path`, or the new name of an old labels.jsonl that was renamed when its run was opened again."""
    renamed = path.with_name(BASE_REWARDS_FILE)
    return renamed if path.name == OLD_BASE_REWARDS_FILE and not path.exists() and renamed.exists() else path


def read_base_rewards(path: Path, newest: int, rewards: set[str], seeds: int | None = None) -> list[RewardedSeeds]:
    """The `newest` groups of the file, oldest first, of each the first `seeds`; None: all of them.

    Raises ConfigError where one lacks a reward of `rewards`, or where they were not all sampled alike.
    """
    path = find_base_rewards(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rounds = [RoundRewards.model_validate_json(line) for line in lines]
    except OSError as error:
        raise ConfigError(
            f"train.initial_base_rewards: {path} ({error.strerror}); `lasro pretrain` writes one"
        ) from error
    except (UnicodeDecodeError, ValidationError) as error:
        why = explain(error) if isinstance(error, ValidationError) else error
        raise ConfigError(f"train.initial_base_rewards: {path}: {why}; `lasro pretrain` writes such files") from error
    found = [
        _first(
            seeds,
            RewardedSeeds(
                (line.seed, "pretrain", line.round, i),
                _num_seeds(group, _steps_of(line)),
                group,
                line.timesteps,
                _steps_of(line),
            ),
        )
        for line in rounds
        for i, group in enumerate(line.groups)
    ]
    for name, values in (("timesteps", {line.timesteps for line in rounds}), ("steps", set(map(_steps_of, rounds)))):
        if len(values) > 1:
            raise ConfigError(
                f"train.initial_base_rewards: {path}: got rounds of runs with different train.{name}, expected those "
                "of one `lasro pretrain`"
            )
    for seeded in found:
        if missing := rewards - set(seeded.group.rewards):
            raise ConfigError(
                f"train.initial_base_rewards: {path} has rewards {sorted(seeded.group.rewards)}, expected also "
                f"{sorted(missing)}; run `lasro pretrain` with this run's rewards, or leave initial_base_rewards out"
            )
    return found[-newest:]


def _steps_of(line: RoundRewards) -> tuple[NumSteps, ...]:
    return line.steps or ONE_AND_TWO


def _samples_per_seed(group: GroupRewards, steps: Sequence[NumSteps]) -> list[int]:
    return [1 if n == 1 else group.second_step_draws for n in steps]


def _num_seeds(group: GroupRewards, steps: Sequence[NumSteps]) -> int:
    return len(next(iter(group.rewards.values()))) // sum(_samples_per_seed(group, steps))


def _first(seeds: int | None, whole: RewardedSeeds) -> RewardedSeeds:
    if seeds is None:
        return whole

    def first(rewards: list[float | None]) -> list[float | None]:
        kept, start = list[float | None](), 0
        for count in whole.samples_per_seed:
            kept += rewards[start : start + min(seeds, whole.seeds) * count]
            start += whole.seeds * count
        return kept

    columns = {name: first(rewards) for name, rewards in whole.group.rewards.items()}
    return whole._replace(group=whole.group.model_copy(update={"rewards": columns}))


def preload_replay(
    model: GeneratorModel, settings: TrainSettings, buffer_groups: int, rewards: Sequence[str], feedback: FeedbackClient
) -> float | None:
    """Put stage 1's groups into the replay, before the first round's. Calls no reward and is safe to repeat.

    At most `buffer_groups`, with these rewards. Returns the surrogate's pair accuracy on them; None where the settings
    name no file. Raises ConfigError.
    """
    if settings.initial_base_rewards is None:
        return None
    newest = min(settings.carried_groups, buffer_groups)
    groups = read_base_rewards(settings.initial_base_rewards, newest, set(rewards), settings.carried_seeds)
    scored = []
    for start in range(0, len(groups), GROUPS_PER_BATCH):
        batch = groups[start : start + GROUPS_PER_BATCH]
        latents = draw_again(model, batch)
        posts = [
            _submission(seeds, latents_NCHW, list(rewards), start + i)
            for i, (seeds, latents_NCHW) in enumerate(zip(batch, latents, strict=True))
        ]
        scored += feedback.post(posts)
    return feedback.adapt(scored, BEFORE_THE_FIRST_ROUND, 0).statistics.fresh_pair_accuracy


@torch.no_grad()
def draw_again(model: GeneratorModel, batch: list[RewardedSeeds]) -> Iterator[torch.Tensor]:
    """The base's samples of each group [K + K D, C, H, W], float16 on the CPU. All groups of a run have the same D.

    At the timesteps and in the numbers of steps in which they were rewarded, whatever those of this run are.
    """
    model, steps = model.with_timesteps(batch[0].timesteps), batch[0].steps
    counts, D = [seeds.seeds for seeds in batch], batch[0].group.second_step_draws
    whole = (draw_group_noises(model, seeds.drawn, D, generator_for(*seeds.seed), max(steps)) for seeds in batch)
    draws = [[x_tau0[:K], *(eps[: K * D] for eps in later)] for K, (x_tau0, *later) in zip(counts, whole, strict=True)]
    noises = [torch.cat(parts) for parts in zip(*draws, strict=True)]
    with device_memory(f"drawing {sum(counts)} base samples again", "lower train.carried_seeds"):
        rows = model.embed([seeds.group.prompt for seeds in batch])
        conditioning = rows.repeat_each(torch.tensor(counts, device=model.device))
        taken = sample_latents(model, noises, conditioning, base=True, num_steps=steps)
    of_each = ([K * per_seed for K in counts] for per_seed in batch[0].samples_per_seed)
    samples = [z.to(torch.float16).cpu().split(sizes) for z, sizes in zip(taken, of_each, strict=True)]
    return (torch.cat(parts) for parts in zip(*samples, strict=True))


def _submission(seeds: RewardedSeeds, latents_NCHW: torch.Tensor, rewards: list[str], index: int) -> GroupSubmission:
    group, labels = seeds.group, label_samples(seeds.seeds, seeds.group.second_step_draws, seeds.steps)
    return GroupSubmission(
        group_id=f"stage1-{index:04d}",
        round=BEFORE_THE_FIRST_ROUND,
        index=index,
        prompt=group.prompt,
        policy_version=0,
        rewards=rewards,
        stages=labels.stages,
        seeds=labels.seeds,
        draws=labels.draws,
        reference=[False] * len(labels.stages),
        scores={name: group.rewards[name] for name in rewards},
        latents=pack_tensors({"latents": latents_NCHW.numpy()}),
    )
