"""Every message that crosses a process, in one place. Imports no torch.

JSON and msgpack share these schemas: bytes fields are base64 in JSON and raw in msgpack.
Tensors travel as safetensors (`pack_tensors`, `unpack_tensors`); nothing is ever unpickled.

Shape legend: B items, G groups, K seeds of a prompt, N = K x stages samples of a group, CHW one latent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, TypedDict, TypeVar

import msgpack
import numpy as np
import pybase64
import pydantic_core
import safetensors
import safetensors.numpy
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from lasro.errors import WireError
from lasro.functional.reward_totals import Combine, RewardObjective, Scale
from lasro.validation import explain, one_line

SCHEMA_VERSION = 1
MSGPACK_TYPE = "application/msgpack"
SAFETENSORS_TYPE = "application/vnd.safetensors"
TIMEOUT_HEADER = "X-Request-Timeout-S"
"""Seconds that the sender will still wait; what comes to its turn later is not scored."""
MAX_TENSORS = 4096
MAX_HEADER_BYTES = 1 << 20
OUT_OF_RANGE = "expected a score in"
"""What the error of a bad reply says where a score lies outside its reward's range."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _bytes_from_base64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return pybase64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError("expected base64 text") from error


def _base64_in_json(value: bytes) -> str:
    return pybase64.b64encode_as_string(value)


Blob = Annotated[
    bytes,
    BeforeValidator(_bytes_from_base64),
    PlainSerializer(_base64_in_json, return_type=str, when_used="json"),
    Field(json_schema_extra={"format": "byte"}),
]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """Base of all messages: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


# --- rewards ---------------------------------------------------------------------------------------------


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
    protocol: Protocol
    timeout_s: float = Field(default=30.0, gt=0, le=600, description="for one call of the endpoint")
    max_batch: int = Field(
        default=32, ge=1, le=512, description="most images per call; openai-chat and mapping without $each send one"
    )
    concurrency: int = Field(default=2, ge=1, le=64, description="calls in flight")
    range: tuple[Finite, Finite] | None = Field(
        default=None, description="expected range; scores outside are bad replies"
    )
    secret: str | None = Field(
        default=None,
        max_length=256,
        description="bearer token sent to the endpoint, or with whsec_ what calls are signed with; never returned",
    )
    signed_replies: bool = Field(
        default=False, description="take only replies signed with the same whsec_ secret, as lasro.reward_sdk does"
    )
    headers: dict[str, str] = Field(default_factory=dict, description="sent with each call; values never returned")
    repeats: int = Field(default=1, ge=1, le=32, description="calls averaged per image, for noisy scorers")
    cache: bool = Field(default=True, description="reuse the score of the same image, prompt, metadata and version")
    mapping: dict[str, Any] | None = Field(
        default=None, description="settings of the protocol, each its own; unknown ones are refused"
    )

    @model_validator(mode="after")
    def _ordered_range(self) -> RewardSpec:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range: got {list(self.range)}, expected [low, high] with low < high")
        return self


class RewardInfo(Message):
    """A registered reward as the API tells of it: secrets and header values are left out."""

    name: Name
    url: str
    protocol: Protocol
    timeout_s: float
    max_batch: int
    images_per_call: int = Field(description="max_batch, or 1 where the protocol carries one image")
    concurrency: int
    range: tuple[float, float] | None
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
    status: Status
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
    """Those of a RewardValue, as the reward API makes it: to check what it has just computed takes longer than that."""

    score: float | None
    status: Status
    error: str | None
    attempts: int
    latency_s: float
    version: int


class ScoredItem(Message):
    scores: dict[str, RewardValue]
    total: Finite | None = Field(description="of the rewards; null when one that counts is missing, or vetoed")
    vetoed: bool = Field(default=False, description="whether a reward is below its floor, and none that counts missing")


def scores_of(items: Sequence[ScoredItem], reward: str) -> list[float | None]:
    """What one reward gave to each item; null where it failed."""
    return [item.scores[reward].score for item in items]


def version_of(items: Sequence[ScoredItem], reward: str) -> int:
    """The newest registration of a reward that scored any of the items."""
    return max(item.scores[reward].version for item in items)


class ScoreReply(Message):
    items: list[ScoredItem] = Field(description="in the order of the request")


class ProbeReply(Message):
    """What one call with a known image showed."""

    status: Status
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


# --- groups ----------------------------------------------------------------------------------------------


class GroupState(StrEnum):
    QUEUED = "queued"
    SCORED = "scored"
    DEAD = "dead"
    """Set aside: it cannot be read, or its workers died of it. `lasro queue` retries or drops it."""


class GroupSubmission(Message):
    """One prompt, K seeds, one- and two-step samples of each: the unit of everything.

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
    stages: list[Literal[1, 2]] = Field(min_length=2, max_length=1024, description="1 or 2 denoising steps, per sample")
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
    state: GroupState
    reward_calls: int = Field(description="images scored by a reward so far in this run, cache hits not counted")


class GroupStatus(Message):
    group_id: Name
    state: GroupState
    items: list[ScoredItem] | None = Field(default=None, description="absent until scored")
    error: str | None = Field(default=None, description="why it was set aside; absent unless it is dead")
    reward_calls: int


class ScoredGroup(Message):
    """A scored group as it lies on a run's sample stream."""

    group_id: Name
    round: int
    index: int
    prompt: str
    policy_version: int
    stages: list[Literal[1, 2]]
    scores: dict[str, list[Finite | None]] = Field(description="raw component per reward, null where it failed")
    versions: dict[str, int] = Field(description="reward version that scored it")
    latents: Blob
    schema_version: Literal[1] = SCHEMA_VERSION


# --- surrogate -------------------------------------------------------------------------------------------


class AdaptRequest(Message):
    """Train the surrogate once `new_groups` groups have arrived since the last time."""

    request_id: Name = Field(description="repeating a request returns the first one's reply")
    new_groups: list[Name] = Field(max_length=4096, description="ids that must be in the replay first")
    steps: int = Field(ge=0, le=100_000, description="optimiser steps")
    timeout_s: float = Field(default=120.0, gt=0, le=3600, description="how long to wait for the groups")
    drift: Finite | None = Field(
        default=None, description="of the generator that made them, where the client knows it: 1 is a change of seed"
    )


class AdaptStatistics(Message):
    """Null where there is nothing to measure yet."""

    loss: Finite | None = Field(description="mean Bradley-Terry loss over the steps")
    pair_accuracy: Finite | None = Field(description="on the pairs trained on")
    fresh_pair_accuracy: Finite | None = Field(description="on the new groups, before training on them")
    held_out_pair_accuracy: Finite | None = Field(description="on groups kept out of training")
    reward_gap: Finite | None = Field(description="1 - Spearman correlation of score and reward within fresh groups")
    pairs: int = Field(description="ranked pairs trained on")
    constant_groups: int = Field(description="new groups without any ranked pair")
    failed_samples: int = Field(description="new samples dropped because a reward failed")
    scales: dict[Name, Scale] = Field(
        default_factory=dict, description="mean and deviation by which normalised rewards entered the totals"
    )
    stale_groups: int = Field(
        description="new groups of a generator over surrogate.max_policy_lag updates behind: trained on, not fresh"
    )
    duration_s: float


class AdaptReply(Message):
    version: int
    statistics: AdaptStatistics


class RunStatus(Message):
    run: Name
    version: int = Field(description="of the published surrogate; 0 before any training")
    steps: int
    replay_groups: int
    held_out_groups: int
    queue_lag: int = Field(description="samples on the stream not yet read")
    held_out_pair_accuracy: Finite | None
    reward_gap: Finite | None = Field(
        description="1 - Spearman correlation between score and reward within fresh groups; 0 is perfect"
    )
    trained: Literal["adapter", "full"]


class VersionInfo(Message):
    """What is known of one version of the surrogate. Null where there was nothing to measure yet."""

    version: int
    steps: int = Field(description="optimiser steps behind it")
    kept: bool = Field(description="whether its weights can still be fetched")
    policy_version: int = Field(description="updates of the generator that made the newest group it learned from")
    fresh_pair_accuracy: Finite | None = Field(description="of the version before it, on its new groups")
    held_out_pair_accuracy: Finite | None = Field(description="on groups kept out of training, as last measured")
    reward_gap: Finite | None = Field(description="1 - Spearman correlation of score and reward within fresh groups")
    drift: Finite | None = Field(
        description="of the generator behind its newest groups from the base, as its client told: 1 is a change of seed"
    )


class VersionList(Message):
    versions: list[VersionInfo] = Field(description="oldest first")


class Lease(Message):
    version: int = Field(ge=0, description="the oldest one that may still be asked for")


class RunList(Message):
    runs: list[RunStatus]


class SurrogateScoreRequest(Message):
    """The JSON way to ask for scores; latents go as safetensors with prompts in the header."""

    prompts: list[str] = Field(min_length=1, max_length=256)
    images: list[Blob] = Field(min_length=1, max_length=256, description="encoded by the model's VAE")


class SurrogateScoreReply(Message):
    scores: list[Finite]
    version: int


# --- errors ----------------------------------------------------------------------------------------------


class Problem(Message):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


M = TypeVar("M", bound=Message)


# --- encoding --------------------------------------------------------------------------------------------


Fields = dict[str, Any]
"""Those of a message made by this process, which are known to be right: checking them, and taking the message apart
again, would take a tenth of the time of a cached answer."""


def to_msgpack(message: Message | Fields) -> bytes:
    """Raises WireError where the message holds what msgpack cannot carry, such as an integer over 64 bits."""
    try:
        fields = message.model_dump(mode="python") if isinstance(message, Message) else message
        packed = msgpack.packb(fields, use_bin_type=True)
    except (OverflowError, ValueError, TypeError) as error:
        raise WireError(f"{type(message).__name__}: cannot be encoded as msgpack ({error})") from error
    assert packed is not None
    return packed


def to_json(message: Message | Fields) -> str | bytes:
    """As one JSON object."""
    return message.model_dump_json() if isinstance(message, Message) else pydantic_core.to_json(message)


def from_msgpack(kind: type[M], body: bytes) -> M:
    """Decode and check a msgpack body; raises WireError."""
    try:
        return kind.model_validate(msgpack.unpackb(body, raw=False, strict_map_key=True))
    except ValidationError as error:
        raise WireError(explain(error)) from error
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"body: got {len(body)} bytes that are not one msgpack map ({error})") from error


def from_json(kind: type[M], body: bytes | str) -> M:
    """Decode and check a JSON body; raises WireError."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise WireError(explain(error)) from error


def pack_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise C-contiguous arrays as safetensors; `metadata` values must be strings."""
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        dict(metadata) if metadata else None,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WireError("safetensors: duplicate keys in the header, expected each name once")
    return result


def tensor_header(body: bytes) -> dict[str, Any]:
    """The parsed safetensors header, checked for size, duplicate keys and count before anything is loaded."""
    if len(body) < 8:
        raise WireError(f"safetensors: got {len(body)} bytes, expected at least 8")
    length = int.from_bytes(body[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(body) - 8):
        raise WireError(
            f"safetensors: header of {length} bytes, expected at most {min(MAX_HEADER_BYTES, len(body) - 8)}"
        )
    try:
        header = json.loads(body[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError("safetensors: the header is not JSON") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise WireError(f"safetensors: expected a header of at most {MAX_TENSORS} tensors")
    return header


def unpack_tensors(body: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and header metadata of a safetensors body. Only finite float16 and float32 and integers pass."""
    metadata = tensor_header(body).get("__metadata__") or {}
    try:
        tensors = safetensors.numpy.load(body)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(one_line(f"safetensors: {error}")) from error
    for name, array in tensors.items():
        if array.dtype not in (np.float16, np.float32, np.int64, np.int32, np.uint8):
            got = f"{one_line(name)}: got dtype {array.dtype}"
            raise WireError(f"{got}, expected float16, float32, int32, int64 or uint8")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise WireError(f"{one_line(name)}: got NaN or infinity, expected finite numbers")
    return tensors, metadata


_STRINGS = TypeAdapter(list[str])


def pack_prompts(prompts: list[str]) -> str:
    """Prompts as one header metadata string."""
    return json.dumps(prompts, ensure_ascii=False)


def unpack_prompts(metadata: Mapping[str, str], count: int) -> list[str]:
    """The `prompts` of a safetensors header; exactly `count` of them."""
    try:
        prompts = _STRINGS.validate_json(metadata.get("prompts", ""), strict=True)
    except ValidationError as error:
        raise WireError("prompts: expected a JSON list of strings in the safetensors metadata") from error
    if len(prompts) != count:
        raise WireError(f"prompts: got {len(prompts)}, expected one per latent ({count})")
    return prompts
