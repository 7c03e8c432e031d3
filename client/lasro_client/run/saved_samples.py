"""Latents and rewards of a run's samples, kept in its folder: a later stage 1 can learn from those of earlier runs.

`samples/ROUND-INDEX.msgpack`, named by the first of its groups; images are not kept. Samples of the base can be drawn
again (`base_sample_rewards.py`), those of a generator cannot once it was updated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

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
    """Write these groups of one round with their rewards; a round that is repeated replaces its files.

    Raises StorageError.
    """
    if not posts:
        return
    groups = [_with_rewards(post, status) for post, status in zip(posts, scored, strict=True)]
    name = f"{posts[0].round:06d}-{posts[0].index:04d}.msgpack"
    write_atomically(run / SAMPLES_FOLDER / name, to_msgpack(_Groups(groups=groups)))


def _with_rewards(post: GroupSubmission, status: GroupStatus) -> GroupSubmission:
    rewards = {name: scores_of(status.items or [], name) for name in post.rewards}
    return GroupSubmission.model_validate(dict(post) | {"images": [], "scores": rewards, "max_reward_calls": None})


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


def preload_samples(runs: Sequence[Path], rewards: Sequence[str], feedback: FeedbackClient) -> int:
    """Put the groups that these runs kept into the replay, before the first round's; returns how many.

    Calls no reward and is safe to repeat. Raises ConfigError where a group lacks a reward of this run.
    """
    kept = (group for run in runs for group in read_samples(run))
    count = 0
    while batch := list(islice(kept, GROUPS_PER_POST)):
        posts = [_carried(group, rewards, index) for index, group in enumerate(batch, count)]
        feedback.adapt(feedback.post(posts), BEFORE_THE_FIRST_ROUND, 0, part=count)
        count += len(posts)
    return count


def _carried(group: GroupSubmission, rewards: Sequence[str], index: int) -> GroupSubmission:
    scores = group.scores or {}
    if missing := set(rewards) - set(scores):
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
        rewards=list(rewards),
        stages=group.stages,
        seeds=group.seeds,
        draws=group.draws,
        reference=group.reference,
        scores={name: scores[name] for name in rewards},
        latents=group.latents,
    )
