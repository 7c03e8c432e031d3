"""What stage 1 learned from, carried into stage 2: rewards are kept, the base's samples are drawn again.

Stage 2 starts with an empty replay otherwise, and the surrogate unlearns in tens of rounds what stage 1 taught it.
Keeping the samples themselves would take gigabytes for a large model; a noise's seed takes none, and the base is
there. `lasro pretrain` writes `labels.jsonl`, one line per round; `train.initial_base_rewards` of a stage-2 run names
it.

Shape legend: K seeds of a prompt; lists of rewards have the K one-step samples first, then the two-step ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, ValidationError

from lasro.config import RunSettings
from lasro.errors import ConfigError
from lasro.models.base import GeneratorModel
from lasro.training.sampling import GroupSummary, draw_noises, generator_for, sample_latents
from lasro.validation import explain
from lasro.wire import Finite, GroupStatus, GroupSubmission, Message, pack_tensors, scores_of
from lasro_client.services.feedback import FeedbackClient

BASE_REWARDS_FILE = "labels.jsonl"
GROUPS_PER_BATCH = 8
SUFFICIENT_DIGITS = 5
BEFORE_THE_FIRST_ROUND = -1


class GroupRewards(Message):
    """Rewards of one group's samples of the base."""

    prompt: str
    rewards: dict[str, list[Finite | None]] = Field(description="2 K each, null where one failed")


class RoundRewards(Message):
    """All groups of one round of stage 1; group i drew its noise from (seed, "pretrain", round, i)."""

    seed: int
    round: int
    groups: list[GroupRewards]


class RewardedSeeds(NamedTuple):
    """One group that can be drawn again: of `drawn` seeds the first, those that it has labels of."""

    seed: tuple[object, ...]
    drawn: int
    labels: GroupRewards


def base_rewards_of(seed: int, round: int, groups: list[GroupSummary], scored: list[GroupStatus]) -> RoundRewards:
    """Of the model's own samples, which in stage 1 are the base's."""

    def column(group: GroupSummary, status: GroupStatus, name: str) -> list[float | None]:
        scores = scores_of(status.items or [], name)
        own = [score for score, is_beside in zip(scores, group.beside, strict=True) if not is_beside]
        return [None if score is None else round_to(score) for score in own]

    def round_to(score: float) -> float:
        return float(f"{score:.{SUFFICIENT_DIGITS}g}")

    labels = [
        GroupRewards(
            prompt=group.prompt.text,
            rewards={name: column(group, status, name) for name in (status.items or [])[0].scores},
        )
        for group, status in zip(groups, scored, strict=True)
    ]
    return RoundRewards(seed=seed, round=round, groups=labels)


def read_base_rewards(path: Path, newest: int, rewards: set[str], seeds: int | None = None) -> list[RewardedSeeds]:
    """The `newest` groups of the file, oldest first, of each the first `seeds`; null: all.

    Raises ConfigError where one lacks a reward of `rewards`.
    """
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
        _first(seeds, RewardedSeeds((line.seed, "pretrain", line.round, i), _seeds(labels), labels))
        for line in rounds
        for i, labels in enumerate(line.groups)
    ]
    for _, _, labels in found:
        if missing := rewards - set(labels.rewards):
            raise ConfigError(
                f"train.initial_base_rewards: {path} has rewards {sorted(labels.rewards)}, expected also "
                f"{sorted(missing)}; run `lasro pretrain` with this run's rewards, or leave initial_base_rewards out"
            )
    return found[-newest:]


def _seeds(labels: GroupRewards) -> int:
    return len(next(iter(labels.rewards.values()))) // 2


def _first(seeds: int | None, whole: RewardedSeeds) -> RewardedSeeds:
    K = whole.drawn
    columns = {name: r[:K][:seeds] + r[K:][:seeds] for name, r in whole.labels.rewards.items()}
    return whole._replace(labels=whole.labels.model_copy(update={"rewards": columns}))


def preload_replay(model: GeneratorModel, config: RunSettings, feedback: FeedbackClient) -> float | None:
    """Put stage 1's groups before the first round of the replay. No reward is called, and repeating is harmless.

    Returns the surrogate's pair accuracy on them; None where there is nothing to carry. Raises ConfigError.
    """
    settings = config.train
    if settings.initial_base_rewards is None:
        return None
    newest = min(settings.carried_groups, config.surrogate.buffer_groups)
    groups = read_base_rewards(settings.initial_base_rewards, newest, set(config.weights), settings.carried_seeds)
    scored = []
    for start in range(0, len(groups), GROUPS_PER_BATCH):
        batch = groups[start : start + GROUPS_PER_BATCH]
        latents = drawn_again(model, batch)
        posts = [
            _submission(labelled.labels, latents_NCHW, list(config.weights), start + i)
            for i, (labelled, latents_NCHW) in enumerate(zip(batch, latents, strict=True))
        ]
        scored += feedback.post(posts)
    return feedback.adapt(scored, BEFORE_THE_FIRST_ROUND, 0).statistics.fresh_pair_accuracy


@torch.no_grad()
def drawn_again(model: GeneratorModel, batch: list[RewardedSeeds]) -> Iterator[torch.Tensor]:
    """Per group its base's samples [2 K, C, H, W], float16 on the CPU."""
    counts = [_seeds(labelled.labels) for labelled in batch]
    whole = (draw_noises(model, labelled.drawn, generator_for(*labelled.seed)) for labelled in batch)
    draws = [[noise[:K] for noise in drawn] for K, drawn in zip(counts, whole, strict=True)]
    noises = [torch.cat(parts) for parts in zip(*draws, strict=True)]
    rows = model.embed([labelled.labels.prompt for labelled in batch])
    conditioning = rows.repeat_each(torch.tensor(counts, device=model.device))
    stages = [z.to(torch.float16).cpu().split(counts) for z in sample_latents(model, noises, conditioning, base=True)]
    return (torch.cat(parts) for parts in zip(*stages, strict=True))


def _submission(labels: GroupRewards, latents_NCHW: torch.Tensor, rewards: list[str], index: int) -> GroupSubmission:
    K = len(latents_NCHW) // 2
    return GroupSubmission(
        group_id=f"stage1-{index:04d}",
        round=BEFORE_THE_FIRST_ROUND,
        index=index,
        prompt=labels.prompt,
        policy_version=0,
        rewards=rewards,
        stages=[1 if i < K else 2 for i in range(2 * K)],
        scores={name: labels.rewards[name] for name in rewards},
        latents=pack_tensors({"latents": latents_NCHW.numpy()}),
    )
