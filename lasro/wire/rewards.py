"""Messages about rewards: registering them, asking for scores, and what a reward's endpoint is asked."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, TypedDict

from pydantic import Field, model_validator

from lasro.functional.reward_totals import Combine, RewardObjective
from lasro.wire.codec import Blob, Finite, Message, Name
from lasro.wire.registry_fields import Headers, Mapping, Range

OUT_OF_RANGE = "expected a score in"
"""What the error of a bad reply says where a score lies outside its reward's range."""


class Protocol(StrEnum):
    """What a reward endpoint speaks."""

    NATIVE = "native"
    FLOW_FACTORY = "flow-factory"
    UNIRL = "unirl"
    OPENAI_CHAT = "openai-chat"
    OIP_V2 = "oip-v2"
    MAPPING = "mapping"


class Status(StrEnum):
    """How scoring one item by one reward ended. Anything but OK leaves `score` null."""

    OK = "ok"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    HTTP_ERROR = "http_error"
    BAD_REPLY = "bad_reply"
    BLOCKED = "blocked"
    UNAVAILABLE = "unavailable"
    REJECTED = "rejected"


class RewardSpec(Message):
    """What registering a reward takes."""

    name: Name
    url: str = Field(min_length=1, max_length=2048, json_schema_extra={"format": "uri"})
    protocol: Annotated[Protocol, Field(strict=False)]
    timeout_s: float = Field(default=30.0, gt=0, le=600, description="for one call of the endpoint")
    max_batch: int = Field(
        default=32, ge=1, le=512, description="most images per call; openai-chat and mapping without $each send one"
    )
    concurrency: int = Field(default=2, ge=1, le=64, description="calls in flight")
    range: Range | None = Field(default=None, description="expected range; scores outside are bad replies")
    secret: str | None = Field(
        default=None,
        max_length=256,
        description="bearer token sent to the endpoint, or with whsec_ what calls are signed with; never returned",
    )
    signed_replies: bool = Field(
        default=False, description="take only replies signed with the same whsec_ secret, as lasro.reward_sdk does"
    )
    headers: Headers = Field(default_factory=dict, description="sent with each call; values never returned")
    repeats: int = Field(default=1, ge=1, le=32, description="calls averaged per image, for noisy scorers")
    cache: bool = Field(default=True, description="reuse the score of the same image, prompt, metadata and version")
    mapping: Mapping | None = Field(
        default=None, description="settings of the protocol, each its own; unknown ones are refused"
    )

    @model_validator(mode="after")
    def _ordered_range(self) -> RewardSpec:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range: got {list(self.range)}, expected [low, high] with low < high")
        return self


class RewardInfo(Message):
    """A registered reward as the API shows it: secrets and header values are left out."""

    name: Name
    url: str
    protocol: Annotated[Protocol, Field(strict=False)]
    timeout_s: float
    max_batch: int
    images_per_call: int = Field(description="max_batch, or 1 where the protocol carries one image")
    concurrency: int
    range: Range | None
    has_secret: bool
    signed_replies: bool = False
    header_names: list[str]
    repeats: int
    cache: bool
    mapping: dict[str, Any] | None
    version: int = Field(description="1 when registered, one more at each change")


class RewardList(Message):
    rewards: list[RewardInfo] = Field(description="by name")


class ScoreRequest(Message):
    """Images to be scored by some registered rewards."""

    prompts: list[str] = Field(min_length=1, max_length=1024)
    images: list[Blob] = Field(min_length=1, max_length=1024, description="PNG, JPEG or WebP, one per prompt")
    rewards: list[Name] = Field(min_length=1, max_length=32)
    metadata: list[Any] | None = Field(default=None, description="one entry per prompt, given to the rewards untouched")
    objective: dict[str, Finite] | None = Field(
        default=None, description="weight of each reward in `total`; absent: 1 each"
    )
    combine: Combine = Field(
        default="sum", description="`total` is the weighted sum, product of powers, or smallest weighted reward"
    )
    floors: dict[str, Finite] = Field(
        default_factory=dict, description="rewards below which an image is vetoed; one of weight 0 is only a guard"
    )
    fresh: bool = Field(
        default=False, description="have every image scored now, for measuring: the cache is neither asked nor filled"
    )

    @model_validator(mode="after")
    def _one_each(self) -> ScoreRequest:
        if len(self.images) != len(self.prompts):
            raise ValueError(f"images: got {len(self.images)}, expected one per prompt ({len(self.prompts)})")
        if self.metadata is not None and len(self.metadata) != len(self.prompts):
            raise ValueError(f"metadata: got {len(self.metadata)}, expected one per prompt ({len(self.prompts)})")
        if unknown := set(self.objective or {}) - set(self.rewards):
            raise ValueError(f"objective: got {sorted(unknown)}, expected only names listed in rewards")
        self.reward_objective  # noqa: B018 - raises where the rewards cannot be combined so
        return self

    @cached_property
    def reward_objective(self) -> RewardObjective:
        """How the rewards make one total."""
        weights = {name: 1.0 if self.objective is None else self.objective.get(name, 0.0) for name in self.rewards}
        return RewardObjective(weights, self.combine, self.floors)


class RewardValue(Message):
    """One reward's answer for one image. `score` is null exactly when `status` is not ok."""

    score: Finite | None
    status: Annotated[Status, Field(strict=False)]
    error: str | None = None
    attempts: int = 1
    latency_s: float = 0.0
    version: int = 0

    @model_validator(mode="after")
    def _score_iff_ok(self) -> RewardValue:
        if (self.score is None) == (self.status is Status.OK):
            raise ValueError(f"score {self.score} with status {self.status}: expected a number exactly when ok")
        return self


class ScoreFields(TypedDict):
    """The fields of a RewardValue as a plain dict: to check what the API has just computed takes longer than that."""

    score: float | None
    status: Annotated[Status, Field(strict=False)]
    error: str | None
    attempts: int
    latency_s: float
    version: int


class ScoredItem(Message):
    scores: dict[str, RewardValue]
    total: Finite | None = Field(description="of the rewards; null when one that counts is missing, or vetoed")
    vetoed: bool = Field(default=False, description="whether a reward is below its floor, and none that counts missing")


def scores_of(items: Sequence[ScoredItem], reward: str) -> list[float | None]:
    """What one reward gave to each item; None where it failed."""
    return [item.scores[reward].score for item in items]


def version_of(items: Sequence[ScoredItem], reward: str) -> int:
    """The newest registration of a reward that scored any of the items."""
    return max(item.scores[reward].version for item in items)


class ScoreReply(Message):
    items: list[ScoredItem] = Field(description="in the order of the request")


class ProbeReply(Message):
    """What one call with a known image showed."""

    status: Annotated[Status, Field(strict=False)]
    score: Finite | None
    latency_s: float
    error: str | None = None


class NativeRequest(Message):
    """What the native protocol posts to a user's reward endpoint."""

    prompts: list[str]
    images: list[Blob]
    metadata: list[Any]


class NativeReply(Message):
    """What the endpoint answers when every image has a score."""

    scores: list[Finite] = Field(description="one per image, in order")


class PartialReply(Message):
    """What the endpoint answers when some images could not be scored."""

    scores: list[Finite | None] = Field(description="one per image, null where it could not be scored")
    errors: list[str | None] = Field(description="the reason where the score is null, else null")
