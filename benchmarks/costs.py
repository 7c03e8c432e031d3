"""What one sample costs, part by part, on this machine and with this model: what docs/scaling.md calculates with.

    python benchmarks/costs.py configs/demo.toml

Each part is done a few times after a first, uncounted one; the median counts. Nothing is trained and no service runs:
the reward itself and the way over the network are not in it.

Shape legend: N samples of a group, B prompts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lasro.config import RunSettings, load_config
from lasro.functional.reward_totals import RewardObjective
from lasro.images import png_bytes
from lasro.methods.registry import create_trainer
from lasro.models.backbone import trunk_of
from lasro.models.base import GeneratorModel
from lasro.models.frozen import FrozenModel
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate
from lasro.training.prompts import Prompt, read_prompts
from lasro.training.replay_buffer import ReplayBuffer, ReplayGroup
from lasro.training.sampling import Group, draw_noises, generator_for, sample_groups, sample_latents
from lasro.training.score_source import LocalSurrogate
from lasro.training.surrogate_trainer import SurrogateTrainer
from lasro.wire import pack_tensors
from lasro_client.run.submission import RoundHeader, submission


class Cost(NamedTuple):
    """Of one part: `value` in `unit`, per what `per` says."""

    part: str
    value: float
    unit: str
    per: str


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median over `repeats`, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def sampling_costs(model: GeneratorModel, config: RunSettings, prompts: list[Prompt], repeats: int) -> list[Cost]:
    """Drawing, decoding and packing the samples of a round."""
    chosen = prompts[: config.train.prompts_per_round]
    count = len(chosen) * config.train.seeds_per_prompt
    noises = draw_noises(model, count, generator_for("costs"))
    with torch.no_grad():
        conditioning = model.embed([prompt.text for prompt in chosen]).repeat_each(config.train.seeds_per_prompt)
        latents = sample_latents(model, noises, conditioning)[1]
        draw = seconds(lambda: sample_latents(model, noises, conditioning), repeats)
        decode = seconds(lambda: model.decode(latents, mixed=True), repeats)
    images = model.decode(latents, mixed=True)
    encode = seconds(lambda: [png_bytes(image) for image in images], repeats)
    sizes = [len(png_bytes(image)) for image in images]
    return [
        Cost("draw both stages", draw / count * 1e3, "ms", "noise (two images)"),
        Cost("decode", decode / count * 1e3, "ms", "image"),
        Cost("encode as PNG", encode / count * 1e3, "ms", "image"),
        Cost("PNG", statistics.mean(sizes) / 1e3, "kB", "image"),
        Cost("latent on the stream", latents[0].numel() * 2 / 1e3, "kB", "image"),
    ]


def update_costs(model: GeneratorModel, config: RunSettings, prompts: list[Prompt], repeats: int) -> list[Cost]:
    """One update of the generator, and what processes or services exchange for it."""
    trainer = create_trainer(config, model)
    surrogate = build_surrogate(trunk_of(config.surrogate_run, model), config.surrogate)
    source, batch = LocalSurrogate(surrogate), prompts[: config.train.batch_size]
    update = seconds(lambda: trainer.step(batch, source), repeats)
    weights = pack_tensors({name: tensor.numpy() for name, tensor in surrogate.trained_state().items()})
    latent = model.latent_shape[0] * model.latent_shape[1] * model.latent_shape[2] * 4
    return [
        Cost("update the generator", update / len(batch) * 1e3, "ms", "prompt of the batch"),
        Cost("gradient that processes sum", sum(p.numel() for p in trainer.parameters) * 4 / 1e6, "MB", "update"),
        Cost("weights mode: surrogate fetched", len(weights) / 1e6, "MB", "round and process"),
        Cost("gradient mode: sent and fetched", 6 * latent / 1e3, "kB", "prompt of the batch"),
    ]


def surrogate_costs(model: GeneratorModel, config: RunSettings, prompts: list[Prompt], repeats: int) -> list[Cost]:
    """One step of the surrogate, on groups as large as a run's."""
    groups = sample_groups(model, prompts[: config.surrogate.groups_per_step], config.train, "costs", base=True)
    name, replay = config.rewards[0].name, ReplayBuffer(1000, 100, 0.0)
    for index, group in enumerate(groups):
        rewards = torch.rand(len(group.stages), generator=generator_for("costs", index), dtype=torch.float64).numpy()
        latents = group.latents_BCHW.half().numpy()
        stages = torch.tensor(group.stages).numpy()
        replay.add(ReplayGroup(f"{index}", 0, index, group.prompt.text, stages, {name: rewards}, latents))
    replay.activate([f"{index}" for index in range(len(groups))])
    trunk = FrozenModel(trunk_of(config.surrogate_run, model))
    trainer = SurrogateTrainer(trunk, config.surrogate, RewardObjective({name: 1.0}))
    step = seconds(lambda: trainer.step(replay), repeats)
    samples = sum(len(group.stages) for group in groups)
    body = len(posted(groups[0], config)) / len(groups[0].stages)
    return [
        Cost("train the surrogate", step / samples * 1e3, "ms", "sample of the batch"),
        Cost("posted to the reward API", body / 1e3, "kB", "image"),
    ]


def posted(group: Group, config: RunSettings) -> bytes:
    post = submission(group, RoundHeader(0, 0, list(config.weights), None), 0)
    return b"".join([*(post.images or []), post.latents])


def measure(config: RunSettings, repeats: int) -> list[Cost]:
    model, prompts = load_model(config.model), read_prompts(config.prompts.train)
    costs = sampling_costs(model, config, prompts, repeats) + surrogate_costs(model, config, prompts, repeats)
    costs += update_costs(model, config, prompts, repeats)
    if torch.cuda.is_available():
        costs.append(
            Cost("memory of the GPU, all of it here", torch.cuda.max_memory_allocated() / 1e9, "GB", "process")
        )
    return costs


def device_name(model_device: str) -> str:
    return torch.cuda.get_device_name() if model_device != "cpu" and torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    config = load_config(given.config)
    costs = measure(config, given.repeats)
    for cost in costs:
        print(f"{cost.part:36} {cost.value:10.2f} {cost.unit:3} a {cost.per}")
    result: dict[str, Any] = {"device": device_name(config.model.device), "threads": torch.get_num_threads()}
    print(json.dumps(result | {"costs": [cost._asdict() for cost in costs]}))


if __name__ == "__main__":
    main()
