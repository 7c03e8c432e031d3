"""The memory that a run's processes will need, computed from shapes: nothing is loaded and nothing computed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from lasro.config import ModelSettings, RunSettings
from lasro.models.device import pick_device
from lasro_client.doctor.live_bytes import LiveBytes
from lasro_client.doctor.shapes import Part, Shapes, shapes_of
from lasro_client.doctor.steps import ClientSteps, TrainerSteps

HELD = ("unet", "vae")
"""Parts that stay in memory; text encoders are let go once all prompts are embedded."""
KERNELS = 64 << 20
"""Bytes that a CPU's libraries keep of kernels that have run once, such as compiled code: of the bundled model's client 50
to 110 MiB were seen that are neither tensors nor given back by malloc_trim, and less of its trainer."""


class Need(NamedTuple):
    """Peak memory of a process in one kind of step, in bytes."""

    process: str
    """client or trainer."""
    step: str
    program: int
    """Interpreter, libraries and what their kernels keep, on a CPU."""
    weights: int
    """Frozen ones."""
    computing: int
    """What is trained with its gradients and moments, activations, and what is decoded."""

    @property
    def total(self) -> int:
        return self.program + self.weights + self.computing


class Computed(NamedTuple):
    """What shapes tell of a run."""

    family: str
    """The class that draws with it."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    parts: list[Part]
    needs: list[Need]
    encoders: int
    """Bytes that text encoders take on top, while there are prompts to embed."""
    lora_parameters: int
    surrogate_parameters: int


def compute_needs(config: RunSettings) -> Computed:
    """Of client and surrogate trainer; raises ModelError for a model that is not supported."""
    client, trainer = shapes_of(config.model), shapes_of(_at_trainer(config))
    program = program_bytes() + KERNELS if pick_device(config.model.device).type == "cpu" else 0  # all is imported now
    needs, live = [], LiveBytes()

    def note(process: str, step: str, shapes: Shapes, work: Callable[[], None]) -> None:
        for _ in range(2):  # gradients and moments are there from the first on
            live.peak_since()
            work()
        needs.append(Need(process, step, program, _weights(shapes.parts), live.peak_since()))

    with client.active(), live:
        steps = ClientSteps(config, client.model)
        note("client", "generation", client, steps.generate)
        note("client", "update", client, steps.update)
    lora = sum(parameter.numel() for parameter in steps.trainer.parameters)
    surrogate, live = 0, LiveBytes()
    if steps.trainer.method.needs_surrogate:
        with trainer.active(), live:
            of_trainer = TrainerSteps(config, trainer.model)
            note("trainer", "serving", trainer, of_trainer.serve)
            note("trainer", "surrogate step", trainer, of_trainer.step)
        surrogate = sum(parameter.numel() for parameter in of_trainer.parameters)
    encoders = sum(part.bytes for part in client.parts if part.name not in HELD)
    model = client.model
    return Computed(type(model).__name__, model.image_size, client.parts, needs, encoders, lora, surrogate)


def _at_trainer(config: RunSettings) -> ModelSettings:
    return config.surrogate_run.model.model_copy(update={"device": config.surrogate.device})


def _weights(parts: list[Part]) -> int:
    return sum(part.bytes + part.copied_bytes for part in parts if part.name in HELD)


def program_bytes() -> int:
    """Resident memory of this process: of the interpreter and the libraries that it has imported so far."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
