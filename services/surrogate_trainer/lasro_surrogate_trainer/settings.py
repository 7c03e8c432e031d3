"""Settings of the surrogate trainer, read from `LASRO_*` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lasro.service.environment import ServiceEnvironment


class TrainerEnvironment(ServiceEnvironment):
    """The settings of every service, and those of the surrogate trainer."""

    data_dir: Path = Path("surrogate-trainer")
    """Folder of runs and their weight versions; made when absent."""
    probe_model: str | None = None
    """Model of the readiness check while there is no run, as `path` in a run's settings; absent: none."""
    probe_device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of that model; with `cuda` the trainer does not start without a GPU."""
    torch_threads: int = Field(0, ge=0)
    """CPU threads of torch; 0 leaves its own choice."""
    max_runs: int = Field(16, ge=1)
    """Most runs at a time: each keeps a surrogate being trained and a published one in memory."""
    redo_s: float = Field(10.0, ge=0)
    """Seconds of training that a restart may have to repeat. The optimiser's state, twice the size of the trained
    weights, is saved once more than this was trained since the last save; 0: after every adaptation."""
    keep_versions: int = Field(4, ge=1)
    """Number of newest versions of the weights that are kept."""
    keep_versions_s: float = Field(60.0, ge=0)
    """Age in seconds below which versions are kept too. A client's lease keeps its version and all later ones."""
