"""The trackers that a run may report to, each by accelerate's class for it and what that leaves out.

Only the main process of a run comes here. Packages are imported when a tracker starts.
"""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from PIL import Image

    from lasro.config.tracking import Tracker

PROJECT = "lasro"
"""Under which trackers that hold the runs of several programs keep ours."""


class TrackerKind(ABC):
    """One tracker of a run named `name`; `folder`: for its files. `known_id`: its name of the run, where it has one.

    `start()` comes first. Whatever any method raises is the tracker's own.
    """

    install: ClassVar[str]
    """What pip is asked for."""
    tracker: GeneralTracker

    def __init__(self, name: str, folder: Path, known_id: str) -> None:
        self.name, self.folder, self.id = name, folder, known_id

    @abstractmethod
    def start(self) -> None:
        """Begin the tracker's run, or go on with it; sets `tracker` and `id`."""

    @abstractmethod
    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Send an RGB picture."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Where its user looks, in a few words."""

    def _begin(self, tracker: GeneralTracker) -> None:
        tracker.start()
        self.tracker = tracker


class TensorBoard(TrackerKind):
    """Event files in `folder`/NAME."""

    install = "'lasro[tracking]'"

    def start(self) -> None:
        from accelerate.tracking import TensorBoardTracker

        self._begin(TensorBoardTracker(self.name, self.folder))

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        pictures_BHWC = np.asarray(picture)[None]
        self.tracker.log_images({name: pictures_BHWC}, step=step, dataformats="NHWC")  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def where(self) -> str:
        return f"tensorboard --logdir {self.folder}"


class Wandb(TrackerKind):
    """Offline in `folder`/wandb, unless WANDB_MODE says otherwise."""

    install = "wandb"

    def start(self) -> None:
        from accelerate.tracking import WandBTracker

        self.id = self.id or uuid.uuid4().hex[:8]
        self.mode = os.environ.get("WANDB_MODE", "offline")
        options = {"dir": str(self.folder), "mode": self.mode, "id": self.id, "resume": "allow", "name": self.name}
        self._begin(WandBTracker(PROJECT, **options))

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        self.tracker.log_images({name: [picture]}, step=step)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def where(self) -> str:
        if self.mode == "offline":
            return f"wandb sync {self.folder / 'wandb'}/offline-run-*-{self.id}"
        return f"wandb, {self.mode}: project {PROJECT}, run {self.name} ({self.id})"


class Trackio(TrackerKind):
    """In its own folder on this machine (TRACKIO_DIR)."""

    install = "trackio"

    def start(self) -> None:
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        from accelerate.tracking import TrackioTracker

        self.id = self.id or f"{self.name}-{uuid.uuid4().hex[:8]}"
        self._begin(TrackioTracker(PROJECT, name=self.id, resume="allow"))

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.tracker.log({name: trackio.Image(picture)}, step=step)

    @property
    def where(self) -> str:
        return f"trackio show --project {PROJECT} (run {self.id})"


class MLflow(TrackerKind):
    """Where MLFLOW_TRACKING_URI says, else where mlflow keeps runs of this folder."""

    install = "mlflow"

    def start(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from accelerate.tracking import MLflowTracker

        self._begin(MLflowTracker(PROJECT, run_id=self.id or None, run_name=self.name))
        self.id = self.tracker.tracker.info.run_id  # pyright: ignore[reportAttributeAccessIssue]

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        mlflow.log_image(picture, key=name, step=step)

    @property
    def where(self) -> str:
        import mlflow  # pyright: ignore[reportMissingImports]

        return f"mlflow ui --backend-store-uri {mlflow.get_tracking_uri()} (experiment {PROJECT}, run {self.name})"


KINDS: dict[Tracker, type[TrackerKind]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""By their names in the settings, which are those of their packages."""


def begin_alone() -> None:
    """Tell accelerate, which asks its own state for the main process, that this one is alone.

    Only the main process of a run has trackers. What a launcher says would make accelerate open a process group,
    besides the one that the run has.
    """
    from accelerate import PartialState
    from accelerate.utils import patch_environment

    with patch_environment(LOCAL_RANK="-1"):
        PartialState()
