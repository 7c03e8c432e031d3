"""Samples that were paid for, kept in the run's folder: a later stage 1 learns from those of all earlier runs.

`samples/ROUND-INDEX.msgpack`, named by the first of the groups in it: latents and rewards, no images. Other than the
base's (`labels.py`), a generator's samples cannot be drawn again once it has moved on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from lasro.config import RunSettings
from lasro.errors import ConfigError, WireError
from lasro.files import write_atomically
from lasro.wire import GroupStatus, GroupSubmission, Message, from_msgpack, scores_of, to_msgpack
from lasro_client.run.base_sample_rewards import BEFORE_THE_FIRST_ROUND
from lasro_client.services.feedback import FeedbackClient

SAMPLES_FOLDER = "samples"
GROUPS_PER_POST = 32


class _Groups(Message):
    groups: list[GroupSubmission]


def keep_samples(run: Path, posts: Sequence[GroupSubmission], scored: Sequence[GroupStatus]) -> None:
    """Write these groups of one round with what was said of them; a round that is repeated replaces its files.

    Raises StorageError.
    """
    if not posts:
        return
    groups = [_known(post, status) for post, status in zip(posts, scored, strict=True)]
    name = f"{posts[0].round:06d}-{posts[0].index:04d}.msgpack"
    write_atomically(run / SAMPLES_FOLDER / name, to_msgpack(_Groups(groups=groups)))


def _known(post: GroupSubmission, status: GroupStatus) -> GroupSubmission:
    return GroupSubmission(
        group_id=post.group_id,
        round=post.round,
        index=post.index,
        prompt=post.prompt,
        metadata=post.metadata,
        policy_version=post.policy_version,
        rewards=post.rewards,
        stages=post.stages,
        scores={name: scores_of(status.items or [], name) for name in post.rewards},
        latents=post.latents,
    )


def read_samples(run: Path) -> Iterator[GroupSubmission]:
    """All groups that a run kept, in order. Raises ConfigError for a folder without any or with a damaged file."""
    paths = sorted((run / SAMPLES_FOLDER).glob("[0-9]*.msgpack"))
    if not paths:
        raise ConfigError(
            f"pretrain.initial_samples: {run} has no {SAMPLES_FOLDER}; run it with keep_samples = true, or leave it out"
        )
    for path in paths:
        try:
            yield from from_msgpack(_Groups, path.read_bytes()).groups
        except (OSError, WireError) as error:
            raise ConfigError(f"pretrain.initial_samples: {path} ({error}); leave this run out") from error


def preload_samples(config: RunSettings, feedback: FeedbackClient) -> int:
    """Put the groups of `pretrain.initial_samples` before the first round of the replay; returns how many.

    No reward is called, and repeating is harmless. Raises ConfigError where one lacks a reward of this run.
    """
    known = (group for run in config.pretrain.initial_samples for group in read_samples(run))
    count = 0
    while batch := list(islice(known, GROUPS_PER_POST)):
        posts = [_carried(group, config, index) for index, group in enumerate(batch, count)]
        feedback.adapt(feedback.post(posts), BEFORE_THE_FIRST_ROUND, 0, part=count)
        count += len(posts)
    return count


def _carried(group: GroupSubmission, config: RunSettings, index: int) -> GroupSubmission:
    scores = group.scores or {}
    if missing := set(config.weights) - set(scores):
        raise ConfigError(
            f"pretrain.initial_samples: group {group.group_id} has rewards {sorted(scores)}, expected also "
            f"{sorted(missing)}; take runs with the rewards of this one"
        )
    return GroupSubmission(
        group_id=f"earlier-{index:06d}",
        round=BEFORE_THE_FIRST_ROUND,
        index=index,
        prompt=group.prompt,
        metadata=group.metadata,
        policy_version=0,
        rewards=list(config.weights),
        stages=group.stages,
        scores={name: scores[name] for name in config.weights},
        latents=group.latents,
    )
