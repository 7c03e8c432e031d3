"""Messages about groups: submitted by the client, scored by the reward API, read by the surrogate trainer.

Shape legend: K seeds of a prompt, N samples of a group (K of each number of steps, reference samples), CHW one latent.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lasro.num_steps import MOST_STEPS, NumSteps
from lasro.wire.codec import SCHEMA_VERSION, Blob, Finite, Message, Name
from lasro.wire.rewards import ScoredItem

log = logging.getLogger("lasro")


class GroupState(StrEnum):
    QUEUED = "queued"
    SCORED = "scored"
    DEAD = "dead"
    """Dead-lettered: it cannot be read, or its workers died of it. `lasro queue retry` or `drop` ends that."""


Count = Annotated[int, Field(ge=0)]


class _Samples(Message):
    """What made each sample of a group. Groups of earlier releases, and of other clients, may say `stages` alone."""

    stages: list[NumSteps]
    seeds: list[Count] | None = Field(
        default=None, description="which first noise of the group, per sample; absent: unknown"
    )
    draws: list[Count] | None = Field(
        default=None, description="which later noise of those that follow the same first one; 0 for one-step samples"
    )
    reference: list[bool] | None = Field(
        default=None, description="whether another policy drew it, to be compared with, per sample; absent: unknown"
    )

    @model_validator(mode="after")
    def _one_per_sample(self) -> Self:
        count = len(self.stages)
        for name, values in (("seeds", self.seeds), ("draws", self.draws), ("reference", self.reference)):
            if values is not None and len(values) != count:
                raise ValueError(f"{name}: got {len(values)}, expected one per stage entry ({count})")
        drawn_twice = [i for i, draw in enumerate(self.draws or []) if draw > 0 and self.stages[i] == 1]
        if drawn_twice:
            raise ValueError(f"draws: got {self.draws} for stages {self.stages}, expected 0 for one-step samples")
        return self


class GroupSubmission(_Samples):
    """One prompt, K seeds, a sample of each in each number of steps: the unit of everything.

    `images`, `stages` and the leading axis of the `latents` tensor run over the same N samples. A group whose
    rewards are known brings them as `scores` in place of images: nothing is called for it.
    """

    group_id: Name
    round: int = Field(
        ge=-1, description="round of the run that made it, -1 before the first; with `index` orders the replay"
    )
    index: int = Field(ge=0, description="position within the round")
    prompt: str
    metadata: Any = None
    policy_version: int = Field(ge=0, description="generator updates made before sampling")
    rewards: list[Name] = Field(min_length=1, max_length=32)
    stages: list[NumSteps] = Field(
        min_length=2, max_length=1024, description=f"denoising steps, 1 to {MOST_STEPS}, per sample"
    )
    images: list[Blob] = Field(default=[], max_length=1024, description="absent where `scores` are given")
    scores: dict[str, list[Finite | None]] | None = Field(
        default=None,
        description="rewards known already: one list per reward, one entry per sample, null where it failed",
    )
    latents: Blob = Field(description="safetensors with one tensor `latents` [N, C, H, W], float16 or float32")
    max_reward_calls: int | None = Field(default=None, ge=0, description="the run's limit; absent: none")
    schema_version: Literal[1] = SCHEMA_VERSION

    @model_validator(mode="after")
    def _same_count(self) -> GroupSubmission:
        expected = len(self.stages) if self.scores is None else 0
        if len(self.images) != expected:
            why = "one per stage entry" if self.scores is None else "none beside scores"
            raise ValueError(f"images: got {len(self.images)}, expected {why} ({expected})")
        if self.scores is not None and set(self.scores) != set(self.rewards):
            raise ValueError(f"scores: got {sorted(self.scores)}, expected those of {sorted(self.rewards)}")
        for name, values in (self.scores or {}).items():
            if len(values) != len(self.stages):
                raise ValueError(
                    f"scores of {name}: got {len(values)}, expected one per stage entry ({len(self.stages)})"
                )
        return self


class GroupAccepted(Message):
    group_id: Name
    state: Annotated[GroupState, Field(strict=False)]
    reward_calls: int = Field(description="images scored by a reward so far in this run, cache hits not counted")


class GroupStatus(Message):
    group_id: Name
    state: Annotated[GroupState, Field(strict=False)]
    items: list[ScoredItem] | None = Field(default=None, description="absent until scored")
    error: str | None = Field(default=None, description="why it was dead-lettered; absent unless its state is dead")
    reward_calls: int


class ScoredGroup(_Samples):
    """A scored group as it lies on a run's sample stream."""

    group_id: Name
    round: int
    index: int
    prompt: str
    policy_version: int
    rewards: dict[str, list[Finite | None]] = Field(description="by name, one per sample, null where it failed")
    versions: dict[str, int] = Field(description="reward version that scored it")
    latents: Blob
    schema_version: Literal[1] = SCHEMA_VERSION

    @model_validator(mode="before")
    @classmethod
    def _rewards_from_scores(cls, fields: Any) -> Any:
        """Release 0.1 wrote `scores`. Groups of it lie on streams and in journals; 0.3 need not read them any more."""
        if isinstance(fields, dict) and "scores" in fields and "rewards" not in fields:
            _warn_of_scores()
            return {"rewards" if name == "scores" else name: value for name, value in fields.items()}
        return fields


@cache
def _warn_of_scores() -> None:
    """Once in a process: a journal holds thousands of groups."""
    log.warning("a scored group has the field `scores`, which is named `rewards` since 0.2; 0.3 will not read it")
