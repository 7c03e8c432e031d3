"""config.json of a run folder: the settings of its run, and which of them may change once it has rounds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lasro.config import RunSettings, differing_keys
from lasro.config.load import flattened
from lasro.config.older_defaults import is_older, with_older_defaults
from lasro.config.rewards import REGISTERED
from lasro.config.surrogate import with_stored_unit
from lasro.errors import ConflictError
from lasro_client.run.base_sample_rewards import find_base_rewards
from lasro_client.run.round_record import Stage

IGNORED_ON_RESUME: dict[str, Any] = {
    "services": True,
    "model": {"max_batch", "vae_slicing", "shard"},
    "rewards": {"__all__": set(REGISTERED)},
    "health": {"max_unranked_rounds"},
    "tracking": True,
}
"""Settings that are not kept: where services are, what is held in memory at once, how rewards are called, when a run
that learns nothing ends, and whom it tells how it goes."""
LIMITS = ("train.rounds", "pretrain.rounds", "budget.max_reward_calls", "budget.max_minutes")
"""Settings that may grow, and shrink to what is done."""


class Done(NamedTuple):
    """What a run has done so far, of what its settings limit."""

    rounds: int = 0
    reward_calls: int = 0
    minutes: float = 0.0
    ended: str | None = None
    """Why it was ended before its last round, for a reason that more rounds would not mend."""


def kept_settings(stage: str | None, config: RunSettings) -> dict[str, Any]:
    """What config.json holds, with the name that a file of stage 1 has now."""
    settings = config.model_dump(mode="json", exclude=IGNORED_ON_RESUME)
    path = config.train.initial_base_rewards
    settings["train"]["initial_base_rewards"] = None if path is None else str(find_base_rewards(path))
    return {"stage": stage} | settings


def changed_settings(known: dict[str, Any], stage: Stage, config: RunSettings) -> list[str]:
    """Names of the settings that differ from those of a config.json."""
    return differing_keys(_completed(known), kept_settings(stage, config))


def rewritten(known: dict[str, Any] | None, stage: Stage, config: RunSettings) -> dict[str, Any]:
    """What config.json holds once a limit grew. That of an older run still looks older: it is gone on with again."""
    settings = kept_settings(stage, config)
    if known is not None and is_older(known):
        del settings["train"]["drift_budget"]
    return settings


def _completed(known: dict[str, Any]) -> dict[str, Any]:
    """The settings of config.json; those that did not exist when it was written get their defaults."""
    try:
        config = RunSettings.model_validate({key: value for key, value in known.items() if key != "stage"})
    except ValidationError:
        return known
    stored = config.model_copy(update={"surrogate": with_stored_unit(config.surrogate)})
    return kept_settings(known.get("stage"), with_older_defaults(stored) if is_older(known) else stored)


def own_settings(known: dict[str, Any]) -> dict[str, Any]:
    """Those of a config.json that are not the defaults, by dotted name; empty for one that cannot be read."""
    try:
        config = RunSettings.model_validate({key: value for key, value in known.items() if key != "stage"})
    except ValidationError:
        return {}
    own = flattened(config.model_dump(mode="json", exclude=IGNORED_ON_RESUME, exclude_defaults=True))
    for follows in ("model.timesteps", "pretrain.steps"):  # settings of `train`, which other tables repeat
        own.pop(follows, None)
    return own


def rounds_of(config: RunSettings, stage: Stage) -> int:
    """How many rounds the settings ask of a stage."""
    return config.train.max_rounds if stage == "train" else config.pretrain.rounds


def check_changed(folder: Path, stage: Stage, config: RunSettings, changed: Collection[str], done: Done) -> None:
    """Raise ConflictError where the run in a folder cannot go on with the settings that changed."""
    if others := sorted(set(changed) - set(LIMITS)):
        raise ConflictError(
            f"{folder}: made with another configuration, differing in {', '.join(others)}; "
            "change these back to resume it, or choose another folder with --out"
        )
    rounds, budget = rounds_of(config, stage), config.budget
    limits: dict[str, tuple[float | None, float]] = {
        f"{stage}.rounds": (rounds, done.rounds),
        "budget.max_reward_calls": (budget.max_reward_calls, done.reward_calls),
        "budget.max_minutes": (budget.max_minutes, done.minutes),
    }
    for key, (wanted, spent) in limits.items():
        if key in changed and wanted is not None and wanted < spent:
            raise ConflictError(
                f"{folder}: {key}: got {wanted:.10g}, expected at least the {spent:.10g} of the run that is there; "
                "raise it, or choose another folder with --out"
            )
    if done.ended is not None and rounds > done.rounds:
        raise ConflictError(
            f"{folder}: the run was ended after {done.rounds} rounds and takes no more: {done.ended[:200]}; "
            "choose another folder with --out"
        )
