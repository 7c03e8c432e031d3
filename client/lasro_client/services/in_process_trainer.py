"""The surrogate trainer in the client's own process, over the frozen base that the client has loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lasro.config import RunSettings, SurrogateRun
from lasro.errors import ConfigError
from lasro.models.base import GeneratorModel
from lasro.models.device import pick_device
from lasro.models.frozen import FrozenModel
from lasro.training.distributed import DistributedContext

SERVICE = "lasro_surrogate_trainer.in_process"
"""Imported by its name and only where it is asked for, as it is elsewhere started by its name: the client needs no
service to be installed."""
SETTING = "services.in_process_trainer"


class InProcessTrainer:
    """One for a run. Its URL answers as that of a process of its own would."""

    def __init__(self, model: GeneratorModel, run: SurrogateRun) -> None:
        self._frozen, self._run = FrozenModel(model), run
        self._service: Any = None

    def start(self, redis_url: str, data_dir: Path, log_path: Path) -> str:
        """Start it; returns its URL. Raises ConfigError and StorageError."""
        # As it arrives over HTTP, so that the model is found by it.
        run = SurrogateRun.model_validate_json(self._run.model_dump_json())
        self._service = importlib.import_module(SERVICE).serve(self._frozen, run, redis_url, data_dir, log_path)
        return self._service.url

    def check(self) -> None:
        """Raise UnreachableError where it has ended."""
        if self._service is not None:
            self._service.check()

    def stop(self) -> None:
        """End it; a step of training that has begun is waited for."""
        if self._service is not None:
            self._service.stop()


def check_in_process(config: RunSettings, peers: DistributedContext, local: bool) -> None:
    """Raise ConfigError where the settings ask for a trainer in this process and there can be none.

    `local`: whether neither settings nor environment name services. What the settings alone show was refused as they
    were read.
    """
    if not config.services.in_process_trainer:
        return
    if not local:
        raise ConfigError(
            f"{SETTING}: got true, but the environment names services that run elsewhere; unset "
            "LASRO_REWARD_API_URL and LASRO_SURROGATE_TRAINER_URL, or leave the setting out"
        )
    if peers.count > 1:
        raise ConfigError(f"{SETTING}: got true with {peers.count} processes, expected one; leave it out")
    devices = [pick_device(name) for name in (config.model.device, config.surrogate.device)]
    if devices[0] != devices[1]:
        raise ConfigError(
            f"{SETTING}: got true with the model on {devices[0]} and the surrogate on {devices[1]}, expected one "
            "device for both; set surrogate.device, or leave the setting out"
        )
