"""The memory that a run's processes will need, computed from shapes: nothing is loaded and nothing computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from lasro.config import ModelSettings, RunSettings
from lasro.methods.registry import method_of
from lasro.models.device import pick_device
from lasro_client.doctor.live_bytes import LiveBytes
from lasro_client.doctor.shapes import Part, Shapes, shapes_of
from lasro_client.doctor.steps import ClientSteps, TrainerSteps

NETWORK = "unet"
HELD = (NETWORK, "vae")
"""Parts that stay in memory; text encoders are let go once all prompts are embedded."""
KERNELS = 64 << 20
"""Bytes that a CPU's libraries keep of kernels that have run once, such as compiled code. Of the bundled model's client
50 to 110 MiB were seen that are neither tensors nor given back by malloc_trim."""


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


def compute_needs(config: RunSettings, processes: int = 1) -> Computed:
    """Of client and surrogate trainer, or of the client that has both; raises ModelError for a model that is not
    supported.

    `processes`: of the client, which share its network out where the settings say so.
    """
    client = shapes_of(config.model)
    config = sized(config, client.model.image_size)
    backbone, needs, live = _at_client(config, client), [], LiveBytes()
    program = program_bytes() + KERNELS if pick_device(config.model.device).type == "cpu" else 0  # all is imported now
    pieces = {"client": processes if config.model.shard else 1, "trainer": 1}

    def note(process: str, step: str, parts: list[Part], work: Callable[[], None]) -> None:
        for _ in range(2):  # gradients and moments are there from the first on
            live.peak_since()
            work()
        needs.append(Need(process, step, program, _weights(parts, pieces[process]), live.peak_since()))

    held = client.parts + ([] if backbone is None else backbone.parts)
    needs_surrogate, of_trainer = method_of(config).needs_surrogate, None
    with client.active(), live:
        steps = ClientSteps(config, client.model, None if backbone is None else backbone.model)
        if needs_surrogate and config.services.in_process_trainer:  # what it holds counts in the client's steps too
            of_trainer = TrainerSteps(config, client.model)
            note("client", "serving", held, of_trainer.serve)
            note("client", "surrogate step", held, of_trainer.step)
        note("client", "generation", held, steps.generate)
        note("client", "update", held, steps.update)
    trainer = client if of_trainer is not None else shapes_of(at_trainer(config))
    if needs_surrogate and of_trainer is None:
        live = LiveBytes()
        with trainer.active(), live:
            of_trainer = TrainerSteps(config, trainer.model)
            note("trainer", "serving", trainer.parts, of_trainer.serve)
            note("trainer", "surrogate step", trainer.parts, of_trainer.step)
    lora, surrogate = _count(steps.trainer.parameters), _count([] if of_trainer is None else of_trainer.parameters)
    model, parts, encoders = client.model, client.parts, max(_encoders(client.parts), _encoders(trainer.parts))
    if config.surrogate.backbone is not None:
        parts = parts + [part._replace(name=f"backbone {part.name}") for part in trainer.parts]
    return Computed(type(model).__name__, model.image_size, parts, needs, encoders, lora, surrogate)


def sized(config: RunSettings, image_size: tuple[int, int]) -> RunSettings:
    """The same with the size of images that the generator turned out to have, which a backbone takes over."""
    height, width = image_size
    return config.model_copy(update={"model": config.model.model_copy(update={"height": height, "width": width})})


def at_trainer(config: RunSettings) -> ModelSettings:
    """What the trainer loads for settings that are `sized`."""
    return config.surrogate_run.trunk_model.model_copy(update={"device": config.surrogate.device})


def _at_client(config: RunSettings, client: Shapes) -> Shapes | None:
    """The backbone of a client that holds one besides its generator."""
    if config.surrogate.backbone is None or config.train.mode == "gradient" or not method_of(config).needs_surrogate:
        return None
    return shapes_of(config.surrogate_run.trunk_model, client.mode)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _encoders(parts: list[Part]) -> int:
    return sum(part.bytes for part in parts if part.name not in HELD)


def _weights(parts: list[Part], pieces: int) -> int:
    return sum(part.held_bytes(pieces if part.name == NETWORK else 1) for part in parts if part.name in HELD)


def program_bytes() -> int:
    """Resident memory of this process: of the interpreter and the libraries that it has imported so far."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
