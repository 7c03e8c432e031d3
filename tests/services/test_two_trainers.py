"""Two surrogate trainers beside one reward API and one Redis: a run each, as for a GPU each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from starlette.types import ASGIApp

from lasro import wire
from lasro.config import ModelSettings, SurrogateRun, SurrogateSettings
from lasro_client.collector import Collector
from lasro_client.connection import Services
from lasro_client.reward_client import RewardClient
from lasro_client.surrogate_client import SurrogateClient
from lasro_surrogate_trainer.app import create_app
from lasro_surrogate_trainer.settings import TrainerEnvironment

RUNS = ("left", "right")


def known(run: str, index: int) -> wire.GroupSubmission:
    latents = np.random.default_rng([RUNS.index(run), index]).normal(size=(2, 4, 8, 8)).astype(np.float16)
    return wire.GroupSubmission(
        group_id=f"g{index}", round=0, index=index, prompt="a red star", policy_version=0, rewards=["kept-apart"],
        stages=[1, 2], scores={"kept-apart": [0.25, 0.75]}, latents=wire.pack_tensors({"latents": latents}),
    )  # fmt: skip


def test_each_trainer_has_the_samples_of_its_run(
    api: RewardClient, redis_url: str, serve: Callable[[ASGIApp], str], tiny_model_path: Path, tmp_path: Path
) -> None:
    """Guards against trainers that take each other's samples: then a run on each of several GPUs would be none."""
    surrogate = SurrogateSettings(head_channels=8, held_out_share=0, device="cpu", rank_within_stage=False)
    config = SurrogateRun(
        model=ModelSettings(path=str(tiny_model_path)), surrogate=surrogate, weights={"kept-apart": 1.0}
    )
    api.register(
        wire.RewardSpec(name="kept-apart", url="https://nowhere.invalid/", protocol=wire.Protocol.NATIVE), True
    )
    with ExitStack() as exits:
        trainers = {}
        for run in RUNS:
            settings = TrainerEnvironment.model_validate({"redis_url": redis_url, "data_dir": tmp_path / run})
            trainers[run] = exits.enter_context(SurrogateClient(serve(create_app(settings))))
            trainers[run].create(run, config)
        for run in RUNS:
            collector = Collector(Services(api, trainers[run]), run, timeout_s=60.0)
            scored = collector.post([known(run, index) for index in range(2 + RUNS.index(run))])
            assert collector.adapt(scored, 0, 1).version == 1
        for run, other in (RUNS, RUNS[::-1]):
            assert trainers[run].status(run).replay_groups == 2 + RUNS.index(run)
            assert [status.run for status in trainers[run].runs()] == [run], f"{other} is another trainer's"
            trainers[run].delete(run)
