"""What is exported: the adapter that was named, and the run that it comes from, where one does. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from lasro.config import BUNDLED, ModelSettings
from lasro.errors import NotFoundError
from lasro.models.files import SINGLE_FILE, at_home, is_single_file, looks_local
from lasro_client.report.run_data import RunData, read_object, read_run

ADAPTER = "adapter"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
OF_THE_BASE = ("path", "revision", "unet", "config", "scheduler", "prediction_type", "base_adapter")
"""Settings of a run's model that say which one it is."""


class Source(NamedTuple):
    """An adapter's folder or file; `run` is the one that trained it, None for an adapter of another origin."""

    adapter: Path
    run: RunData | None

    @property
    def model(self) -> dict[str, Any]:
        """Settings of the model that the run adapted; empty where there is no run."""
        known = {} if self.run is None else self.run.config.get("model", {})
        return {name: known[name] for name in OF_THE_BASE if known.get(name) is not None}


def find_source(path: Path) -> Source:
    """Of a run's folder, the adapter in it, or any other adapter. Raises NotFoundError for a run that has none."""
    path = at_home(path)
    if _is_run(path):
        run, adapter = read_run(path), path / ADAPTER
        if not adapter.is_dir():
            why = (
                "stage 1 trains no generator"
                if run.config.get("stage") == "pretrain"
                else "a run writes it when it ends or is stopped"
            )
            raise NotFoundError(f"{path}: a run without an adapter, expected {adapter}; {why}")
        return Source(adapter, run)
    folder = (path.parent if path.suffix == SINGLE_FILE else path).resolve()
    is_of_run = folder.name == ADAPTER and _is_run(folder.parent)
    return Source(path, read_run(folder.parent) if is_of_run else None)


def _is_run(folder: Path) -> bool:
    return (read_object(folder / "config.json") or {}).keys() >= {"rewards", "prompts"}


class Base(NamedTuple):
    """The model that an adapter is of, as others may know it: a folder of this machine by its last name alone."""

    name: str
    hub_ids: tuple[str, ...]
    """Of the pipeline, then of a UNet in place of its own; empty where the pipeline is not on the hub."""


def base_of(settings: ModelSettings) -> Base:
    """The model of these settings."""
    name = "the tiny model that is bundled with lasro" if settings.path == BUNDLED else known_as(settings.path)
    if settings.unet is not None:
        name += f" with the UNet of {known_as(settings.unet)}"
    sources = [source for source in (settings.path, settings.unet) if source is not None]
    is_on_hub = all(_is_hub_id(source) for source in sources)
    return Base(name, tuple(sources) if is_on_hub else ())


def known_as(source: str) -> str:
    """A hub id or short name as it is, a path of this machine by its last name alone."""
    return source if _is_hub_id(source) else Path(source).name


def _is_hub_id(source: str) -> bool:
    is_local = looks_local(source) or is_single_file(source) or Path(source).exists()
    return not is_local and HUB_ID.fullmatch(source) is not None
