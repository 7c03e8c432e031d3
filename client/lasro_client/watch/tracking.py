"""`[tracking]` of a run's settings: is all there that it names, and the observers that do it. Imports no torch."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable

from lasro.config.tracking import TrackingSettings
from lasro.errors import ConfigError
from lasro_client.run.observer import Observer
from lasro_client.watch.on_end import OnEnd
from lasro_client.watch.tracker_kinds import KINDS


def check_tracking(tracking: TrackingSettings) -> None:
    """Raise ConfigError where a tracker's package or the command is not to be found here."""
    for name in tracking.report_to:
        package = importlib.util.find_spec(name)
        if package is None or package.origin is None:  # a mere folder of that name has no origin
            raise ConfigError(
                f"tracking.report_to: got {name}, expected its package here; pip install {KINDS[name].install}, or "
                "leave it out"
            )
    command = tracking.end_command
    if command and shutil.which(command[0]) is None:
        raise ConfigError(
            f"tracking.on_end: got {command[0]}, expected a program on the PATH, or a file that may be run; mind that "
            "no shell reads it"
        )


def tracking_observers(tracking: TrackingSettings, say: Callable[[str], None]) -> list[Observer]:
    """Those of the settings; `say` takes lines for the user. Raises ConfigError as `check_tracking`."""
    check_tracking(tracking)
    found: list[Observer] = []
    if tracking.end_command:  # before the trackers, which are closed then when it is called
        found.append(OnEnd(tracking.end_command, say))
    if tracking.report_to:
        from lasro_client.watch.trackers import Trackers  # torch

        found.append(Trackers(tracking.report_to, say))
    return found
