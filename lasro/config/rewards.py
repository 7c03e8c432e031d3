"""The rewards of a run and how they make one total."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from lasro.config.base import ConfigPath, Settings
from lasro.functional.reward_totals import Combine
from lasro.wire import Finite, Name

REGISTERED = ("timeout_s", "max_batch", "concurrency", "range", "repeats", "cache")
"""Settings of a reward that its registration holds: fields of `wire.RewardSpec` and `RewardInfo` by the same names."""


class RewardSettings(Settings):
    """One reward of the objective, or a guard of it."""

    name: Name
    """As registered at the reward API."""
    weight: Finite = 1.0
    """Factor in a sum or minimum, exponent in a product; 0 scores and logs it, and leaves it out of the total."""
    floor: Finite | None = None
    """In units of the reward: a sample below it is vetoed, and ranks below all that are not. Absent: no guard."""
    normalise: bool = False
    """Take it in standard deviations from its mean, both of the groups in the replay, so that its unit is no matter."""
    serve: str | None = None
    """`module:function` of an `@reward`; served and registered by the local stack. Absent: already registered."""
    import_path: ConfigPath = Field(default=Path("."), exclude=True, validate_default=True)
    """Folder that `serve` is imported from, besides where Python looks; absent: that of the TOML file."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] | None = None
    """For one call of the reward. This one and the next five are of its registration: with `serve` it is made with
    them; a reward that is registered already must have those that are set. Absent here: 30 s."""
    max_batch: Annotated[int, Field(ge=1, le=512)] | None = None
    """Most images in a call; absent: 32."""
    concurrency: Annotated[int, Field(ge=1, le=64)] | None = None
    """Calls in flight; a served function computes one after the other all the same. Absent: 2."""
    range: tuple[Finite, Finite] | None = None
    """Lowest and highest reward; one outside counts as failed. Absent: any."""
    repeats: Annotated[int, Field(ge=1, le=32)] | None = None
    """Calls averaged for each image, for a noisy reward; absent: 1."""
    cache: bool | None = None
    """Whether the reward of the same image, prompt and metadata is used again; absent: true."""

    @model_validator(mode="after")
    def _ordered_range(self) -> RewardSettings:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range: got {list(self.range)}, expected [low, high] with low < high")
        return self

    @property
    def registered(self) -> dict[str, Any]:
        """What is set of its registration, by name."""
        values = {name: getattr(self, name) for name in REGISTERED}
        return {name: value for name, value in values.items() if value is not None}


class ObjectiveSettings(Settings):
    """What the surrogate learns to rank by: one total of the run's rewards."""

    combine: Combine = "sum"
    """What makes one total of the rewards: their weighted sum, product of powers, or smallest weighted one."""
