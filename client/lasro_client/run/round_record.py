"""One round of a run as a typed record, and its line in log.jsonl. Imports no torch.

The line is flat: each part of the record contributes the keys that its fields name. A key that an older log lacks is
read as "not measured".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from lasro.errors import WireError
from lasro.functional.reward_totals import Scale
from lasro.num_steps import ONE_AND_TWO
from lasro.validation import explain
from lasro.wire import KindAccuracy
from lasro_client.evaluation.num_steps import ByNumSteps, unmeasured
from lasro_client.services.failures import Failure

Stage = Literal["pretrain", "train"]
Action = Literal["stop", "roll_back"]
Phase = Literal["ranking", "pilot", "training"]
Means = ByNumSteps[float | None]
not_measured = partial(unmeasured, ONE_AND_TWO)
"""Of a log that lacks the key."""


@dataclass(frozen=True)
class RewardRecord:
    """Means over a round's samples, by the number of denoising steps; None without such a sample.

    `rewards` are over all samples that the reward scored, `total` over those that no guard vetoed, `vetoed` is the
    share of the others. `reference` is the total of the reference samples, everything else is of the policy's own
    samples. `gain` is own minus reference total, of samples of the same noise. `scored_samples` of all `samples`,
    reference samples too, have a total, which may be vetoed.
    """

    rewards: Annotated[Mapping[str, Means], Field(alias="reward")] = field(default_factory=dict)
    total: Means = field(default_factory=not_measured)
    vetoed: Means = field(default_factory=not_measured)
    # Logs of version 0.1 call it `beside`; read until 0.3.
    reference: Annotated[
        Means, Field(validation_alias=AliasChoices("reference", "beside"), serialization_alias="reference")
    ] = field(default_factory=not_measured)
    gain: Means = field(default_factory=not_measured)
    versions: Annotated[Mapping[str, int], Field(alias="reward_versions")] = field(default_factory=dict)
    """Newest registration of each reward that scored a sample."""
    samples: int = 0
    scored_samples: int = 0
    failures: Mapping[str, Failure] = field(default_factory=dict)
    """Of each reward that did not score every sample."""


@dataclass(frozen=True)
class SurrogateRecord:
    """The surrogate's update of a round, see `lasro.wire.AdaptStatistics`; None where there was nothing to measure."""

    loss: Annotated[float | None, Field(alias="bt_loss")] = None
    pair_accuracy: float | None = None
    fresh_pair_accuracy: float | None = None
    held_out_pair_accuracy: float | None = None
    reward_gap: float | None = None
    accuracy_by_kind: Mapping[str, KindAccuracy] = field(default_factory=dict)
    stale_groups: int = 0
    constant_groups: int = 0
    ranked_pairs: int = 0
    tied_pairs: int = 0
    spread: float | None = None
    tie_margin: float | None = None
    failed_samples: int = 0
    scales: Mapping[str, Scale] = field(default_factory=dict)
    version: Annotated[int, Field(alias="surrogate_version")] = 0


@dataclass(frozen=True)
class GeneratorRecord:
    """The generator's updates of a round, averaged over them; None in a round without one.

    `drift` is the distance of its latents from the base's of the same noise, in distances between seeds of the base,
    `distance` that of the round's images, in distances between prompts (`lasro.functional.drift`); `drift_target` is
    where the updates were to take it in this unit, `regulariser_weight` what held it there.
    """

    drift: Means = field(default_factory=not_measured)
    score: Means = field(default_factory=not_measured)
    loss: float | None = None
    regulariser: float | None = None
    grad_norm: float | None = None
    distance: Means = field(default_factory=not_measured)
    drift_target: float | None = None
    regulariser_weight: float | None = None


@dataclass(frozen=True)
class HealthRecord:
    """What is wrong with the run, in one sentence, and what was done about it; None for nothing."""

    trouble: str | None = None
    action: Action | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One round. In stage 1 no generator is kept, so `generator` and `health` are empty and not logged."""

    stage: Stage
    round: int
    """From 0."""
    num_rounds: Annotated[int, Field(alias="rounds")] = 0
    """How many the run will have, by what is known in this round."""
    elapsed_s: float = 0.0
    """Since the start of the run, interruptions left out."""
    rewards: RewardRecord = RewardRecord()
    surrogate: SurrogateRecord = SurrogateRecord()
    generator: GeneratorRecord = GeneratorRecord()
    phase: Phase | None = None
    """What stage 2 did in this round; None in stage 1 and before 0.2."""
    restarts: int = 0
    """Times that the generator had gone back to where it began."""
    event: str | None = None
    """What changes with the next round, and why."""
    reward_calls: int = 0
    """Images scored by a reward in the run so far, cache hits not counted."""
    policy_version: int = 0
    """Updates of the generator so far."""
    unranked_rounds: int = 0
    """Rounds in a row, up to this one, that gave no ranked pair."""
    health: HealthRecord = HealthRecord()

    @property
    def is_searching(self) -> bool:
        """Whether the run still finds out how many rounds it will take, so that nobody knows the time left."""
        return self.phase in ("ranking", "pilot")


_RECORD = TypeAdapter(RoundRecord)


def to_json(record: RoundRecord) -> str:
    """The record's line of log.jsonl, without its line end. Raises ValueError for NaN or infinity."""
    fields = _RECORD.dump_python(record, by_alias=True)
    rewards, surrogate, generator, health = (
        fields.pop(part) for part in ("rewards", "surrogate", "generator", "health")
    )
    if record.stage == "pretrain":
        generator = health = {}
        for key in ("phase", "restarts", "event"):
            del fields[key]
    sums = {key: fields.pop(key) for key in ("reward_calls", "policy_version", "unranked_rounds")}
    return json.dumps(fields | rewards | generator | surrogate | sums | health, allow_nan=False)


def from_json(line: str) -> RoundRecord:
    """Read a line of log.jsonl; raises WireError for one that is damaged or not yet written to its end."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise WireError(f"log.jsonl: got {line[:40]!r}, expected a JSON object ({error})") from error
    if not isinstance(fields, dict):
        raise WireError(f"log.jsonl: got {line[:40]!r}, expected a JSON object with stage and round")
    parts = dict.fromkeys(("rewards", "surrogate"), fields)
    if fields.get("stage") == "train":
        parts |= dict.fromkeys(("generator", "health"), fields)
    try:
        return _RECORD.validate_python(fields | parts)
    except ValidationError as error:
        raise WireError(f"log.jsonl: {explain(error)}") from error


def read_log(path: Path) -> list[RoundRecord]:
    """The rounds of a log.jsonl in order; empty where there is none.

    A round that was repeated after a resume counts once, as it went last. Lines that are no record are passed over: a
    run that was killed may have left half a line.
    """
    records: dict[tuple[str, int], RoundRecord] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.split("\n"):
        try:
            record = from_json(line)
        except WireError:
            continue
        records.pop((record.stage, record.round), None)
        records[record.stage, record.round] = record
    return list(records.values())
