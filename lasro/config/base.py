"""What all settings have in common: immutable, unknown keys refused, paths taken from the folder of the TOML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from lasro.num_steps import MOST_STEPS, ONE_AND_TWO, WORDS, NumSteps

Dtype = Literal["float32", "bfloat16", "float16"]
Autocast = Literal["none", "auto", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]

BUNDLED = "bundled"


class Source(NamedTuple):
    """Where settings come from: pydantic's validation context of a TOML file. Without one, paths stay as they are."""

    folder: Path
    """Of the file: relative paths start here."""
    warn: Callable[[str], None]
    """Takes a line about each old name that is still read."""


def from_folder(path: Path, info: ValidationInfo) -> Path:
    """A path of a TOML file: a relative one starts in the file's folder."""
    source: Source | None = info.context
    return path if source is None else (source.folder / path.expanduser()).resolve()


def as_tuple(value: Any) -> Any:
    """What JSON and TOML have in place of a tuple, for a strict reader too."""
    return tuple(value) if isinstance(value, list) else value


def _weights(value: str, info: ValidationInfo) -> str:
    return value if value == BUNDLED else str(from_folder(Path(value), info))


def _folder_or_hub_id(value: str, info: ValidationInfo) -> str:
    """A path where it looks like one, or exists in the folder of the file; anything else is a hub id."""
    if value == BUNDLED or info.context is None:
        return value
    path = from_folder(Path(value), info)
    return str(path) if value.startswith((".", "~", "/")) or path.exists() else value


def _are_falling(value: tuple[int, ...]) -> bool:
    return all(a > b for a, b in pairwise((1000, *value, -1)))


def falling_for(steps: tuple[NumSteps, ...], value: tuple[int, ...]) -> tuple[int, ...]:
    """Timesteps of a run that samples in these numbers of steps; raises ValueError for others than of the most."""
    most = max(steps)
    if len(value) != most or not _are_falling(value):
        count = f"{WORDS[most - 1]} timestep{'s' if most > 1 else ''}"
        example = "the larger first, such as [999, 299]" if most == 2 else "the largest first"
        for_steps = "" if steps == ONE_AND_TWO else f" for steps {list(steps)}"
        raise ValueError(
            f"got {list(value)}{for_steps}, expected {count} from 999 to 0, {example}; "
            "leave it out for the scheduler's own"
        )
    return value


def _falling(value: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(value) <= MOST_STEPS or not _are_falling(value):
        raise ValueError(
            f"got {list(value)}, expected two timesteps from 999 to 0, the larger first, such as [999, 299], or as "
            f"many as there are steps, up to {MOST_STEPS}; leave it out for the scheduler's own"
        )
    return value


def _rising(value: tuple[int, ...]) -> tuple[NumSteps, ...]:
    if not value or any(a >= b for a, b in pairwise((0, *value, MOST_STEPS + 1))):
        raise ValueError(f"got {list(value)}, expected one or more numbers from 1 to {MOST_STEPS}, the smaller first")
    return value


ConfigPath = Annotated[Path, AfterValidator(from_folder)]
"""A file or folder; relative to the TOML file."""
WeightsFile = Annotated[str, AfterValidator(_weights)]
"""`bundled`, or a file as `ConfigPath`."""
ModelSource = Annotated[str, AfterValidator(_folder_or_hub_id)]
"""`bundled`, a folder (as `ConfigPath`), or a hub id: what is no folder next to the TOML file."""

Pixels = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], BeforeValidator(as_tuple)]
"""Height and width, or top and left."""

Timesteps = Annotated[tuple[int, ...], AfterValidator(_falling)]
"""Those of 1 to 8 steps, 0 (clean) to 999 (noise), the larger first."""
Steps = Annotated[tuple[int, ...], AfterValidator(_rising)]
"""Numbers of a sampler's steps, rising."""


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Names of the last release and what they are now; read for one release."""

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, Mapping) or data.keys().isdisjoint(cls.renamed):
            return data
        current = dict(data)
        for old, new in cls.renamed.items():
            if old in current:
                move_key(current, old, current, new, info)
        return current


def move_key(
    table: dict[str, Any],
    old: str,
    target: dict[str, Any],
    new: str,
    info: ValidationInfo,
    old_table: str = "",
    new_table: str = "",
) -> None:
    """Move `table[old]` to `target[new]` and say so; raises ValueError where both are there.

    `old_table`, `new_table`: what the message puts before the names, where the tables differ.
    """
    if new in target:
        raise ValueError(f"{old_table}{old}: got it together with {new_table}{new}, its new name; remove the old one")
    target[new] = table.pop(old)
    source: Source | None = info.context
    if source is not None:
        source.warn(
            f"{old_table}{old} is now {new_table}{new}; the old name is read in this release and not in the next"
        )
