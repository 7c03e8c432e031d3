"""The rewards of a run and how they make one total."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from lasro.config.base import ConfigPath, Settings
from lasro.functional.reward_totals import Combine
from lasro.wire import Finite, Name


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


class ObjectiveSettings(Settings):
    """What the surrogate learns to rank by: one total of the run's rewards."""

    combine: Combine = "sum"
    """What makes one total of the rewards: their weighted sum, product of powers, or smallest weighted one."""
