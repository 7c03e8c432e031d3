"""What an evaluation found, its file, and the before/after table. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, model_validator

from lasro.errors import NotFoundError, RewardError, StorageError, WireError
from lasro.files import write_atomically
from lasro.num_steps import JSON_NAMES, WORDS, NumSteps
from lasro.validation import explain
from lasro.wire import Finite, Message, Name, Status
from lasro_client.evaluation.num_steps import ByNumSteps, by_name
from lasro_client.evaluation.paired_statistics import Comparison, Estimate, compare, estimate

IMAGE_FOLDERS: dict[NumSteps, str] = dict(enumerate(WORDS, 1))
"""Folders of an evaluation's images."""
PromptRewards = ByNumSteps[list[Finite | None]]
"""One reward of every prompt, in prompt order; None where scoring failed."""


class Evaluation(Message):
    """What `evaluate` found; prompt i was drawn with `seed + i`."""

    model_config = ConfigDict(strict=False)  # JSON and msgpack have no keys that are numbers

    prompts: list[str] = Field(min_length=1)
    seed: int
    rewards: dict[Name, PromptRewards]
    failures: dict[Name, dict[str, int]] = Field(
        default_factory=dict, description="why scores are missing: count per status, for rewards with any"
    )
    errors: dict[Name, str] = Field(
        default_factory=dict, description="what these rewards said, in the words of the commonest failure"
    )

    @property
    def steps(self) -> tuple[NumSteps, ...]:
        """Numbers of steps in which each prompt was drawn; empty where no reward was asked for."""
        return tuple(next(iter(self.rewards.values()), {}))

    @model_validator(mode="after")
    def _one_score_per_prompt(self) -> Evaluation:
        for name, scores in self.rewards.items():
            for key, values in by_name(scores).items():
                if len(values) != len(self.prompts):
                    raise ValueError(f"rewards.{name}.{key}: got {len(values)} scores, expected {len(self.prompts)}")
        return self

    @property
    def unscored(self) -> list[str]:
        """Rewards that scored nothing at all."""
        return [name for name, each in self.rewards.items() if all(v is None for part in each.values() for v in part)]

    @property
    def may_improve(self) -> bool:
        """Whether images lack a score for a reason that may have passed: any but that a reward rejects them."""
        return any(status != Status.REJECTED for statuses in self.failures.values() for status in statuses)

    def check_scored(self) -> None:
        """Raise RewardError in the words of the rewards that scored nothing at all."""
        if self.unscored:
            raise RewardError(self.describe_failures())

    def describe_failures(self) -> str:
        """One line about the rewards that did not score every image: how many they scored, and what they said."""
        images = len(self.steps) * len(self.prompts)
        return "; ".join(
            f"reward {name} scored {images - sum(self.failures[name].values())} of {images} images ({error})"
            for name, error in self.errors.items()
        )


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write it as JSON, atomically."""
    write_atomically(path, evaluation.model_dump_json(indent=1).encode())


def load_evaluation(path: Path) -> Evaluation:
    """Read what `save_evaluation` wrote; raises NotFoundError or StorageError."""
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such evaluation; run `lasro evaluate` first") from error
    except ValidationError as error:
        raise StorageError(f"{path}: not an evaluation ({explain(error)}); delete it and evaluate again") from error


Table = dict[str, dict[str, dict[str, Any]]]
"""The `rewards` of summary.json: reward -> `one_step`, `two_step`, ... -> before, after, difference, n and failed."""


def summary_table(before: Evaluation, after: Evaluation) -> Table:
    """Base against adapted, of the same prompts and seeds (else WireError); a reward is listed where both have it.

    All three figures of a row are over the items scored both times.
    """
    if (before.prompts, before.seed, before.steps) != (after.prompts, after.seed, after.steps):
        raise WireError("evaluations of different prompts, seeds or steps, expected the same for a paired difference")
    return {
        name: {JSON_NAMES[n]: _row(compare(values, after.rewards[name][n])) for n, values in scores.items()}
        for name, scores in before.rewards.items()
        if name in after.rewards
    }


def base_table(before: Evaluation) -> Table:
    """The same rows where nothing is adapted yet: after and difference have no value."""
    nothing = Estimate(None, None, 0, 0)
    return {
        name: {key: _row(Comparison(estimate(values), nothing, nothing)) for key, values in by_name(scores).items()}
        for name, scores in before.rewards.items()
    }


def _row(comparison: Comparison) -> dict[str, Any]:
    return {
        "before": comparison.before.as_dict(),
        "after": comparison.after.as_dict(),
        "difference": comparison.difference.as_dict(),
        "n": comparison.before.n,
        "failed": comparison.before.failed,
    }
