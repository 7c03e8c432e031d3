"""Messages between the client and the surrogate trainer. Gradients and latents travel as safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from lasro.functional.reward_totals import Scale
from lasro.num_steps import JSON_NAMES
from lasro.wire.codec import Blob, Finite, Message, Name

# A strict message takes a dataclass from JSON alone, and msgpack has maps.
ScaleFields = Annotated[Scale, BeforeValidator(TypeAdapter(Scale).validate_python)]


class AdaptRequest(Message):
    """Train the surrogate once `new_groups` groups have arrived since the last time."""

    request_id: Name = Field(description="repeating a request returns the first one's reply")
    new_groups: list[Name] = Field(max_length=4096, description="ids that must be in the replay first")
    steps: int = Field(ge=0, le=100_000, description="optimiser steps")
    rate: float = Field(default=1.0, gt=0, le=10, description="times surrogate.learning_rate that they take")
    settle: bool = Field(
        default=False, description="let the rate fall to a twentieth over these steps, and draw from all groups alike"
    )
    timeout_s: float = Field(default=120.0, gt=0, le=3600, description="how long to wait for the groups")
    drift: Finite | None = Field(
        default=None, description="of the generator that made them, where the client knows it: 1 is a change of seed"
    )


REFERENCE_KINDS = {num_steps: f"reference_{name}" for num_steps, name in JSON_NAMES.items()}
"""By number of steps: a sample and the reference sample of its noise. A generator that follows the surrogate moves each
sample while its noise stays, which is what these pairs show."""
PAIR_KINDS = ("across_seeds", "same_z1", "between_steps", *REFERENCE_KINDS.values())
"""What the two samples of a pair share, see `lasro.functional.bradley_terry.pair_kinds`."""


class KindAccuracy(Message):
    """How one kind of pairs was ranked."""

    accuracy: Finite = Field(ge=0, le=1, description="share ranked right")
    pairs: int = Field(ge=1)

    @classmethod
    def pooled(cls, found: Sequence[KindAccuracy]) -> KindAccuracy:
        """Over the pairs of all of these, of which there is at least one."""
        pairs = sum(each.pairs for each in found)
        return cls(accuracy=sum(each.accuracy * each.pairs for each in found) / pairs, pairs=pairs)


class AdaptStatistics(Message):
    """Null where there is nothing to measure yet."""

    loss: Finite | None = Field(description="mean Bradley-Terry loss over the steps")
    pair_accuracy: Finite | None = Field(description="on the pairs trained on")
    fresh_pair_accuracy: Finite | None = Field(description="on the new groups, before training on them")
    held_out_pair_accuracy: Finite | None = Field(description="on groups kept out of training")
    reward_gap: Finite | None = Field(description="1 - Spearman correlation of score and reward within fresh groups")
    accuracy_by_kind: dict[Name, KindAccuracy] = Field(
        default_factory=dict, description=f"fresh_pair_accuracy by what a pair shares: {', '.join(PAIR_KINDS)}"
    )
    pairs: int = Field(description="ranked pairs trained on")
    constant_groups: int = Field(description="new groups without any ranked pair")
    ranked_pairs: int = Field(default=0, description="pairs of the new groups that rank")
    tied_pairs: int = Field(default=0, description="pairs of the new groups that differ by no more than `tie_margin`")
    spread: Finite | None = Field(
        default=None, description="standard deviation of the totals in the replay, within groups"
    )
    tie_margin: Finite | None = Field(default=None, description="largest difference of totals that is a tie")
    failed_samples: int = Field(description="new samples dropped because a reward failed")
    scales: dict[Name, ScaleFields] = Field(
        default_factory=dict, description="mean and standard deviation by which normalised rewards entered the totals"
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
    accuracy_by_kind: dict[Name, KindAccuracy] = Field(
        default_factory=dict, description="the same by what the two samples of a pair share"
    )
    held_out_pair_accuracy: Finite | None = Field(description="on groups kept out of training, as last measured")
    reward_gap: Finite | None = Field(description="1 - Spearman correlation of score and reward within fresh groups")
    drift: Finite | None = Field(
        description="of the generator behind its newest groups from the base, as its client says: 1 is a change of seed"
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
