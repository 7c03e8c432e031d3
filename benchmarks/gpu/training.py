"""An update of the generator and a step of the surrogate, each beside the same work in plain diffusers and peft."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.figures import Figure, Recorder, in_turns, memory_figure, per_second
from benchmarks.gpu.plain import LoraStep, SurrogateStep
from benchmarks.gpu.sizes import PROMPTS, Sizes, run_settings
from lasro.functional.reward_totals import RewardObjective
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.models.surrogate import cnn_head
from lasro.models.unet_generator import UNetGenerator
from lasro.training.prompts import Prompt
from lasro.training.replay_buffer import ReplayBuffer, ReplayGroup
from lasro.training.sampling import draw_noises, generator_for, label_samples
from lasro.training.surrogate_trainer import SurrogateTrainer
from lasro_client.doctor.steps import Asked

PLAIN = "plain diffusers and peft"


def update(sizes: Sizes, folder: Path, recorder: Recorder) -> None:
    """Both steps of a batch of prompts through a LoRA, held at the base, with the scores given."""
    config = run_settings(sizes, folder)
    model = load_model(config.model)
    assert isinstance(model, UNetGenerator)
    trainer, device = create_trainer(config, model), model.device
    prompts = [Prompt(PROMPTS[i % len(PROMPTS)]) for i in range(sizes.batch)]
    plain = LoraStep(folder / "model", getattr(torch, sizes.dtype), device, config.lora.rank, model.lora_targets)
    arguments = model.unet_arguments(model.embed([prompt.text for prompt in prompts]))
    noises, source = draw_noises(model, sizes.batch, generator_for(0)), Asked(config)
    slope_BCHW = torch.full_like(noises[0], 1e-3)
    turns = in_turns(
        recorder, device, lambda: trainer.step(prompts, source), lambda: plain(noises, slope_BCHW, arguments)
    )
    ours, baseline = (per_second(sizes.batch, each) for each in (turns.ours, turns.baseline))
    recorder.add(Figure("generator update", "prompts/s", ours, PLAIN, baseline, at_least=1.5))
    if (memory := memory_figure("generator update", turns, PLAIN)) is not None:
        recorder.add(memory)


def surrogate_step(sizes: Sizes, folder: Path, recorder: Recorder) -> None:
    """A Bradley-Terry step of LoRA on the UNet's encoder, on groups as a round's."""
    config = run_settings(sizes, folder)
    model = load_model(config.model)
    assert isinstance(model, UNetGenerator)
    device, settings = model.device, config.surrogate
    labels = label_samples(2 * config.train.seeds_per_prompt, 1)
    count = len(labels.stages)
    replay, name = ReplayBuffer(1000, 100, 0.0), config.rewards[0].name
    for index in range(sizes.groups):
        drawn = np.random.default_rng(index)
        latents = drawn.standard_normal((count, *model.latent_shape)).astype(np.float16)
        prompt, rewards = PROMPTS[index % len(PROMPTS)], {name: drawn.random(count)}
        replay.add(ReplayGroup(f"{index}", 0, index, prompt, np.array(labels.stages), rewards, latents))
    replay.activate([f"{index}" for index in range(sizes.groups)])
    trainer = SurrogateTrainer(model, settings, RewardObjective({name: 1.0}))
    samples = sizes.groups * count
    head = cnn_head(trainer.surrogate.trunk.out_channels, settings.head_channels)
    dtype = getattr(torch, sizes.dtype)
    plain = SurrogateStep(folder / "model", dtype, device, settings.adapter_rank, head)
    arguments = model.unet_arguments(model.embed([PROMPTS[0]]).repeat_each(samples))
    x_t_BCHW = torch.randn(samples, *model.latent_shape, device=device)
    timesteps_B = torch.zeros(samples, dtype=torch.int64, device=device)
    turns = in_turns(recorder, device, lambda: trainer.step(replay), lambda: plain(x_t_BCHW, timesteps_B, arguments))
    ours, baseline = (per_second(samples, each) for each in (turns.ours, turns.baseline))
    recorder.add(Figure("surrogate step", "samples/s", ours, PLAIN, baseline))
    if (memory := memory_figure("surrogate step", turns, PLAIN)) is not None:
        recorder.add(memory)
