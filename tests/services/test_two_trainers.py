"""Two surrogate trainers beside one reward API and one Redis: a run each, as for a GPU each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from known_groups import SPEC, known_group, run_of
from starlette.types import ASGIApp

from lasro_client.services.connect import Services
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.reward_client import RewardClient
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_surrogate_trainer.app import create_app
from lasro_surrogate_trainer.settings import TrainerEnvironment

RUNS = ("left", "right")


def test_each_trainer_has_the_samples_of_its_run(
    api: RewardClient, redis_url: str, serve: Callable[[ASGIApp], str], one_level_model_path: Path, tmp_path: Path
) -> None:
    """Guards against trainers that take each other's samples: then a run on each of several GPUs would be none."""
    config = run_of(one_level_model_path)
    api.register(SPEC, True)
    with ExitStack() as exits:
        trainers = {}
        for run in RUNS:
            settings = TrainerEnvironment.model_validate({"redis_url": redis_url, "data_dir": tmp_path / run})
            trainers[run] = exits.enter_context(SurrogateClient(serve(create_app(settings))))
            trainers[run].create(run, config)
        for run in RUNS:
            feedback = FeedbackClient(Services(api, trainers[run]), run, timeout_s=60.0)
            scored = feedback.post([known_group(index) for index in range(2 + RUNS.index(run))])
            assert feedback.adapt(scored, 0, 1).version == 1
        for run, other in (RUNS, RUNS[::-1]):
            assert trainers[run].status(run).replay_groups == 2 + RUNS.index(run)
            assert [status.run for status in trainers[run].runs()] == [run], f"{other} is another trainer's"
            trainers[run].delete(run)
