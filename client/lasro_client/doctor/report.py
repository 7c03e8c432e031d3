"""What `lasro doctor MODEL` finds: a plain dict, as `--json` prints it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lasro.config import RunSettings
from lasro.errors import DeviceMemoryError
from lasro.models.device import pick_device
from lasro_client.doctor.needs import Computed, Need, compute_needs, sized
from lasro_client.doctor.room import free_memory
from lasro_client.doctor.trial import Seen, try_steps
from lasro_client.run.cost import Speed, least_and_most_rounds, least_train_cost, train_cost
from lasro_client.run.sharded import check_shard

PROCESSES = ("client", "trainer")
FLOAT32 = 4
KEPT_VERSIONS = 4
"""Of the surrogate's weights at a trainer of default settings, besides those of rounds since the last checkpoint."""
PNG_SHARE = 0.7
"""Of an image's bytes, as a photograph has them."""
ADVICE = {
    "generation": "lower train.prompts_per_round or seeds_per_prompt, or set model.vae_tile",
    "update": "lower train.micro_batch_size, or set model.gradient_checkpointing = true",
    "surrogate step": 'lower surrogate.groups_per_step, or set surrogate.trunk = "adapter"',
    "serving": "lower train.micro_batch_size",
}
SMALLER = 'or set model.dtype = "bfloat16"'


def examine(config: RunSettings, run: bool, processes: int = 1) -> dict[str, Any]:
    """Compute what a run of these settings needs and, with `run`, take one step of each kind and say what it took.

    `processes`: of the client. A network that they share out is not tried, since one cannot alone.
    Raises ConfigError where it cannot be shared out among so many; ModelError for a model that is not supported, with
    the reason; DeviceMemoryError, before anything is loaded, where there is less memory than it needs.
    """
    check_shard(config, "train", processes)
    computed = compute_needs(config, processes)
    device = pick_device(config.model.device)
    free = free_memory(device)
    report = _about(config, computed) | {"device": device.type, "free_memory": free}
    if run:
        _check_room(computed.needs, free)
        sized_run = sized(config, computed.image_size)
        tried = [each for each in _processes(computed.needs) if each != "client" or not config.model.shard]
        seen = [each for process in tried for each in try_steps(sized_run, process)]
        report["seconds_a_round"] = None if config.model.shard else _seconds_a_round(config, seen)
        report["memory"] = _beside(report["memory"], seen)
    return report


def _about(config: RunSettings, computed: Computed) -> dict[str, Any]:
    return {
        "model": config.model.path,
        "supported": True,
        "family": computed.family,
        "image_size": list(computed.image_size),
        "dtype": config.model.dtype,
        "parts": [part._asdict() for part in computed.parts],
        "lora_parameters": computed.lora_parameters,
        "surrogate_parameters": computed.surrogate_parameters,
        "text_encoders": computed.encoders,
        "memory": [need._asdict() | {"total": need.total} for need in computed.needs],
        "seconds_a_round": None,
        "reward_calls": _calls(config),
        "disk": _disk(config, computed) | {"free": shutil.disk_usage(".").free},
    }


def _processes(needs: Sequence[Need]) -> list[str]:
    return [process for process in PROCESSES if any(need.process == process for need in needs)]


def _check_room(needs: Sequence[Need], free: int | None) -> None:
    """Raise DeviceMemoryError where the largest step of a process, tried alone, does not fit."""
    if free is None:
        return
    largest = max(needs, key=lambda need: need.total)
    if largest.total > free:
        raise DeviceMemoryError(
            f"{largest.step}: needs {largest.total / 2**30:.1f} GiB in the {largest.process}, and there are "
            f"{free / 2**30:.1f} GiB; {ADVICE[largest.step]}, {SMALLER}"
        )


def _beside(memory: list[dict[str, Any]], seen: Sequence[Seen]) -> list[dict[str, Any]]:
    found = {(each.process, each.step): {"seen": each.peak, "seconds": each.seconds} for each in seen}
    return [row | found.get((row["process"], row["step"]), {}) for row in memory]


def _seconds_a_round(config: RunSettings, seen: Sequence[Seen]) -> float:
    """Of training, without the rewards' own time. With `train.overlap` the longer of generator and surrogate counts."""
    seconds, train = {each.step: each.seconds for each in seen}, config.train
    client = seconds["generation"] + train.generator_steps * seconds["update"]
    trainer = train.adaptation_steps * seconds.get("surrogate step", 0.0)
    return max(client, trainer) if train.overlap else client + trainer


def _calls(config: RunSettings) -> dict[str, int]:
    speed = Speed(1, 1, repeats=sum(reward.repeats or 1 for reward in config.rewards))
    return {
        "least_rounds": sum(least_and_most_rounds(config.train)[0]),
        "most_rounds": config.train.max_rounds,
        "least": least_train_cost(config.train, speed).calls,
        "most": train_cost(config.train, speed).calls,
    }


def _disk(config: RunSettings, computed: Computed) -> dict[str, int]:
    """Bytes at the end of a run: of its folder, and of the trainer's."""
    lora, surrogate = FLOAT32 * computed.lora_parameters, FLOAT32 * computed.surrogate_parameters
    height, width = computed.image_size
    images = 4 * config.evaluation.prompts + 2 * 2 * config.evaluation.drift_prompts
    return {
        "checkpoint": 4 * lora,
        "adapter": lora,
        "images": int(images * height * width * 3 * PNG_SHARE),
        "surrogate": surrogate,
        "trainer": (KEPT_VERSIONS + config.train.checkpoint_rounds) * surrogate + 2 * surrogate,
    }


def by_process(memory: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """Peak of each process over its steps."""
    return [
        (process, max(row["total"] for row in rows)) for process, rows in groupby(memory, lambda row: row["process"])
    ]
