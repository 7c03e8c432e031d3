"""Samples that a run keeps in its folder, as a later stage 1 posts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from lasro.training.prompts import Prompt
from lasro.training.sampling import Group
from lasro.wire import AdaptReply, GroupState, GroupStatus, GroupSubmission, RewardValue, ScoredItem, Status
from lasro_client.run.saved_samples import keep_samples, preload_samples
from lasro_client.run.submission import RoundHeader, submission
from lasro_client.services.feedback import FeedbackClient

GROUP = Group(
    Prompt("a red star"), torch.zeros(4, 4, 2, 2), [1, 2, 2, 2], [False, False, False, True], [b""] * 4,
    seeds=[0, 0, 0, 0], draws=[0, 0, 1, 1],
)  # fmt: skip


class Posts:
    """Takes what is posted in place of the services."""

    def __init__(self) -> None:
        self.taken: list[GroupSubmission] = []

    def post(self, posts: list[GroupSubmission]) -> list[GroupStatus]:
        self.taken += posts
        return [scored(post) for post in posts]

    def adapt(self, *_: Any, **__: Any) -> AdaptReply | None:
        return None


def scored(post: GroupSubmission) -> GroupStatus:
    items = [
        ScoredItem(scores={"r": RewardValue(score=i, status=Status.OK)}, total=i) for i, _ in enumerate(post.stages)
    ]
    return GroupStatus(group_id=post.group_id, state=GroupState.SCORED, items=items, reward_calls=0)


def test_what_made_each_sample_is_kept_with_it(tmp_path: Path) -> None:
    """Bug: samples of another noise and policy pass for pairs that share them once they are learned from again."""
    post, posts = submission(GROUP, RoundHeader(0, 0, ["r"], None), 0), Posts()
    keep_samples(tmp_path, [post], [scored(post)])
    assert preload_samples([tmp_path], ["r"], cast("FeedbackClient", posts)) == 1
    for carried in (post, *posts.taken):
        assert (carried.seeds, carried.draws) == (GROUP.seeds, GROUP.draws)
        assert carried.reference == GROUP.is_reference
