"""Settings of the surrogate trainer, read from `LASRO_*` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lasro.service.environment import ServiceEnvironment


class TrainerEnvironment(ServiceEnvironment):
    """What every service has, and where and how this one works."""

    data_dir: Path = Path("surrogate-trainer")
    """Folder of runs and their weight versions; made when absent."""
    probe_model: str | None = None
    """Model that readiness proves itself by while there is no run, as `path` in a run's settings; absent: none."""
    probe_device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where that is run; with `cuda` the trainer does not start without a GPU."""
    torch_threads: int = Field(0, ge=0)
    """CPU threads of torch; 0 leaves its own choice."""
    max_runs: int = Field(16, ge=1)
    """Runs held at once: each keeps a surrogate being trained and one being served in memory."""
    redo_s: float = Field(10.0, ge=0)
    """Seconds of training that a restart may have to repeat: the optimiser's state, twice the size of what is trained,
    is written once more than this was trained since the last time. 0: after every adaptation."""
    keep_versions: int = Field(4, ge=1)
    """Newest versions of the weights that are kept."""
    keep_versions_s: float = Field(60.0, ge=0)
    """Versions younger than these seconds are kept too, and those from a client's lease on."""
