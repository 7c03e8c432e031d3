"""Whom a run tells how it goes, besides its folder and the terminal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ValidationInfo

from lasro.config.base import Settings, from_folder

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


def _each_once(trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
    if len(set(trackers)) != len(trackers):
        raise ValueError(f"got {list(trackers)}, expected each tracker once")
    return trackers


def _command(text: str, info: ValidationInfo) -> str:
    """A command that can be split into words; a program with a slash in its name starts in the folder of the file."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"cannot be split into words ({error}); expected a program and its arguments") from error
    if not words:
        raise ValueError("expected a program and its arguments; leave it out for none")
    if info.context is None or "/" not in words[0]:
        return text
    return shlex.join([str(from_folder(Path(words[0]), info)), *words[1:]])


class TrackingSettings(Settings):
    """Trackers that the run reports to, and what is called when it ends. May be others each time a run goes on."""

    report_to: Annotated[tuple[Tracker, ...], AfterValidator(_each_once)] = ()
    """Trackers that get the figures of each round, pictures of the watched prompts, and the settings. Nothing leaves
    this machine unless the tracker's own variables say so, such as WANDB_MODE."""
    on_end: Annotated[str, AfterValidator(_command)] | None = None
    """Command to call when the run is finished, stopped or failed, for 60 s at most: split into words as a shell does,
    but without a shell. It gets LASRO_RUN, LASRO_STATUS, LASRO_REASON, LASRO_FOLDER and LASRO_SUMMARY."""

    @property
    def end_command(self) -> list[str]:
        """The words of `on_end`; empty for none."""
        return [] if self.on_end is None else shlex.split(self.on_end)
