"""`python -m lasro_client.doctor.trial client|trainer`: one step of each kind for real, in a process of its own.

Reads the run's settings as JSON and writes what it saw as JSON: peak memory of the process and seconds of each step.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from lasro.config import RunSettings
from lasro.errors import DeviceMemoryError, LasroError
from lasro.methods.registry import method_of
from lasro.models.backbone import load_trunk
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro_client.doctor.needs import at_trainer
from lasro_client.doctor.steps import PROMPT, ClientSteps, TrainerSteps
from lasro_client.run.held_trunk import held_trunk

MODULE = "lasro_client.doctor.trial"
RESET = Path("/proc/self/clear_refs")
REPEATS = 2
"""Gradients and moments are there from the first step on; the second is timed."""


class Seen(NamedTuple):
    """Of one kind of step."""

    process: str
    step: str
    peak: int
    """Bytes: of the process, or of its tensors on a GPU."""
    seconds: float


def try_steps(config: RunSettings, process: str) -> list[Seen]:
    """What a process of that name saw; raises DeviceMemoryError or LasroError with its words where it failed."""
    done = subprocess.run(
        [sys.executable, "-m", MODULE, process],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return [Seen(**each) for each in json.loads(done.stdout.splitlines()[-1])]
    if done.returncode == -9:
        raise DeviceMemoryError(f"a step of the {process}: was killed, as a system does that is out of memory")
    lines = done.stderr.strip().splitlines() or ["no reason given"]
    raise LasroError(f"a step of the {process}: {lines[-1]}")


def main(process: str) -> None:
    config = RunSettings.model_validate(json.load(sys.stdin))
    try:
        seen = _client(config) if process == "client" else _trainer(config)
    except LasroError as error:
        sys.exit(str(error))
    print(json.dumps([each._asdict() for each in seen]))


def _client(config: RunSettings) -> list[Seen]:
    model = _embedded(load_model(config.model))
    backbone = held_trunk(config, model, _embedded)
    steps, seen = ClientSteps(config, model, backbone), []
    if config.services.in_process_trainer and method_of(config).needs_surrogate:
        seen = _trainer_steps(config, model, "client")
    return [
        *seen,
        _seen(model, "client", "generation", steps.generate),
        _seen(model, "client", "update", steps.update),
    ]


def _trainer(config: RunSettings) -> list[Seen]:
    return _trainer_steps(config, _embedded(load_trunk(at_trainer(config))), "trainer")


def _trainer_steps(config: RunSettings, model: GeneratorModel, process: str) -> list[Seen]:
    steps = TrainerSteps(config, model)
    # In the heap that a step leaves behind, the memory of serving would not show.
    return [_seen(model, process, "serving", steps.serve), _seen(model, process, "surrogate step", steps.step)]


def _embedded(model: GeneratorModel) -> GeneratorModel:
    model.embed_ahead([PROMPT.text])
    return model


def _seen(model: GeneratorModel, process: str, name: str, work: Callable[[], None]) -> Seen:
    gpu = model.device.type == "cuda"
    seconds = 0.0
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    elif RESET.exists():
        RESET.write_text("5", encoding="ascii")  # Linux then starts the peak again
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return Seen(process, name, torch.cuda.max_memory_allocated() if gpu else _peak(), seconds)


def _peak() -> int:
    """Most resident memory of this process since it was reset; where that cannot be, since it began."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found[0] << 10 if found else most << (0 if sys.platform == "darwin" else 10)


if __name__ == "__main__":
    main(sys.argv[1])
