"""What the way over HTTP costs: gradients, weights, and the whole loop, each beside the same in one process.

Shape legend: B samples, CHW one latent.
"""

from __future__ import annotations

import io
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.figures import Figure, Recorder, in_turns, timed
from benchmarks.gpu.sizes import PROMPTS, Sizes, run_settings
from lasro.config import RunSettings
from lasro.errors import BudgetError
from lasro.functional.reward_totals import RewardObjective
from lasro.methods.registry import create_trainer
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate
from lasro.reward_function import load_reward
from lasro.training.prompts import Prompt, read_prompts
from lasro.training.replay_buffer import ReplayBuffer, ReplayGroup
from lasro.training.sampling import draw_prompts, generator_for, sample_groups, sample_latents
from lasro.training.score_source import LocalSurrogate, ScoreSource
from lasro.training.surrogate_trainer import SurrogateTrainer
from lasro_client.run.observer import Observer
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.stage2 import train
from lasro_client.services.local_stack import LocalStack
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_client.services.surrogate_scores import FetchedSurrogate, RemoteSurrogate

IN_PROCESS, MB = "in one process", 1e6
ROUNDS = 20
"""Of the loop at most; the first is not counted."""


def gradient_and_weights(sizes: Sizes, folder: Path, recorder: Recorder) -> None:
    """Gradients of a batch asked of the trainer, and weights fetched from it."""
    config = run_settings(sizes, folder)
    model = load_model(config.model)
    with (
        LocalStack(folder / "services", config.rewards) as stack,
        SurrogateClient(stack.surrogate_trainer) as client,
    ):
        version = client.create(config.name, config.surrogate_run).version
        local = FetchedSurrogate(client, config.name, build_surrogate(model, config.surrogate))
        remote = RemoteSurrogate(client, config.name, config.surrogate.max_timestep)
        local.refresh(version)
        remote.refresh(version)
        for part, measure in zip(recorder.parts(2), (_gradient, _weights), strict=True):
            measure(sizes, model, part, local, remote)


def _gradient(
    sizes: Sizes, model: GeneratorModel, recorder: Recorder, local: FetchedSurrogate, remote: RemoteSurrogate
) -> None:
    latents_BCHW, noise_BCHW = torch.randn(2, sizes.batch, *model.latent_shape, device=model.device)
    timesteps_B = torch.randint(0, local.max_timestep, (sizes.batch,), device=model.device)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(sizes.batch)]

    def asked(source: ScoreSource) -> Tensor:
        return source.score_and_gradient(latents_BCHW, timesteps_B, noise_BCHW, prompts)[1]

    difference = (asked(local) - asked(remote)).abs().max() / asked(local).abs().max()
    turns = in_turns(recorder, model.device, partial(asked, remote), partial(asked, local))
    note = f"largest difference of the gradients {difference.item():.1e} of the largest"
    recorder.add(Figure("gradient over HTTP", "s", turns.ours, IN_PROCESS, turns.baseline, at_most=1.10, note=note))


def _weights(
    sizes: Sizes, model: GeneratorModel, recorder: Recorder, local: FetchedSurrogate, remote: RemoteSurrogate
) -> None:
    surrogate, version = local.surrogate, remote.version

    def fetch() -> None:
        local.version = None
        local.refresh(version)

    turns = in_turns(recorder, model.device, fetch, lambda: surrogate.load_trained(surrogate.trained_state()))
    size = len(local.client.weights_of(local.run, version)) / MB
    recorder.add(Figure("weights over HTTP", "s", turns.ours, IN_PROCESS, turns.baseline, note=f"{size:.1f} MB"))


class InTurns(Observer):
    """After each round over services, the same round in this process."""

    def __init__(self, recorder: Recorder, loop: OneProcess, device: torch.device) -> None:
        self.recorder, self.loop, self.device = recorder, loop, device
        self.over_services: list[float] = []
        self.here: list[float] = []
        self._began = time.perf_counter()

    def rounds_started(self, num_rounds: int, done: int) -> None:
        self._began = time.perf_counter()

    def round_done(self, record: RoundRecord) -> None:
        self.over_services.append(time.perf_counter() - self._began)
        self.here.append(timed(self.device, partial(self.loop.round, record.round)))
        if record.round > 0:
            self.recorder.add(
                Figure("round over services", "s", self.over_services[1:], IN_PROCESS, self.here[1:], at_most=1.05)
            )
        if not self.recorder.has_time(record.round):
            raise BudgetError("the section's time is over")
        self._began = time.perf_counter()


class OneProcess:
    """The loop of docs/python.md by a run's settings: no service, no HTTP, no second model."""

    def __init__(self, config: RunSettings) -> None:
        self.config, model = config, load_model(config.model)
        self.generator, self.model = create_trainer(config, model), model
        name = config.rewards[0].name
        self.surrogate = SurrogateTrainer(model, config.surrogate, RewardObjective({name: 1.0}))
        self.published = build_surrogate(model, config.surrogate)
        self.replay, self.prompts = ReplayBuffer(1000, 30, 0.0), read_prompts(config.prompts.train)
        self.reward = load_reward(config.rewards[0].serve or "")

    def round(self, number: int) -> None:
        """Sample, score, adapt, update, as a round over services does."""
        train, name = self.config.train, self.config.rewards[0].name
        draws = generator_for(self.config.seed, "train prompts", number)
        chosen = draw_prompts(self.prompts, train.prompts_per_round, draws)
        base = partial(sample_latents, self.model, base=True) if number else None
        groups = sample_groups(self.model, chosen, train, self.config.seed, "train", number, reference_policy=base)
        for index, group in enumerate(groups):
            self.replay.add(
                ReplayGroup.from_samples(group, {name: self._score(group.prompt, group.images)}, number, index)
            )
        self.replay.activate()
        for _ in range(train.adaptation_steps):
            self.surrogate.step(self.replay)
        self.published.load_trained(self.surrogate.surrogate.trained_state())
        for _ in range(train.generator_steps):
            batch = draw_prompts(self.prompts, train.batch_size, draws)
            self.generator.step(batch, LocalSurrogate(self.published))

    def _score(self, prompt: Prompt, pngs: list[bytes]) -> list[float]:
        images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
        return list(self.reward(images, [prompt.text] * len(images)))  # pyright: ignore[reportReturnType]


def loop(sizes: Sizes, folder: Path, recorder: Recorder) -> None:
    """Rounds of `lasro train` with its services, each followed by the same round in one process."""
    train_settings = {"rounds": ROUNDS, "drift_budget": "none"}
    config = run_settings(sizes, folder, train=train_settings)
    here = OneProcess(config)
    with suppress(BudgetError):
        train(config, folder / "run", [InTurns(recorder, here, here.model.device)])
