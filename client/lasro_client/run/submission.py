"""A round's groups as they are posted to the reward API. Their ids name round, index and content.

So posting a group again is harmless, and a round that is sampled again has the same groups where sampling is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lasro.training.sampling import Group
from lasro.wire import GroupSubmission, pack_tensors, to_msgpack


class RoundHeader(NamedTuple):
    """What all groups of a round have in common."""

    round: int
    policy_version: int
    """Updates that the generator had had."""
    rewards: Sequence[str]
    """Names of the rewards that score them."""
    max_reward_calls: int | None
    """Of the whole run; None: no limit."""


def submission(group: Group, header: RoundHeader, index: int) -> GroupSubmission:
    """The group at this index of its round."""
    name = f"r{header.round:06d}-{index:04d}"
    made = GroupSubmission(
        group_id=name,
        round=header.round,
        index=index,
        prompt=group.prompt.text,
        metadata=group.prompt.metadata,
        policy_version=header.policy_version,
        rewards=list(header.rewards),
        stages=group.stages,
        seeds=group.seeds,
        draws=group.draws,
        reference=group.is_reference,
        images=group.images,
        latents=pack_tensors({"latents": group.latents_BCHW.to(torch.float16).numpy()}),
    )
    digest = hashlib.sha256(to_msgpack(made)).hexdigest()[:16]
    return made.model_copy(update={"group_id": f"{name}-{digest}", "max_reward_calls": header.max_reward_calls})
