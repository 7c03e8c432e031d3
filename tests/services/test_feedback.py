"""The client between both services: what Redis forgets on the way from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from known_groups import SPEC, known_group, run_of
from starlette.types import ASGIApp

from lasro.redis_store.connection import connect
from lasro.redis_store.runs import delete_run
from lasro_client.services import feedback as feedback
from lasro_client.services.connect import Services
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.reward_client import RewardClient
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_surrogate_trainer.app import create_app
from lasro_surrogate_trainer.settings import TrainerEnvironment

RUN = "forgotten"


def forget_run(client: redis.Redis) -> None:
    delete_run(client, RUN)


def forget_all(client: redis.Redis) -> None:
    client.flushall()


@pytest.mark.parametrize("forget", [forget_run, forget_all])
def test_groups_that_redis_forgot_after_they_were_scored_are_posted_again(
    forget: Callable[[redis.Redis], None],
    url: str,
    redis_url: str,
    serve: Callable[[ASGIApp], str],
    one_level_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: a Redis that lost its last second had forgotten scored groups that the trainer had not read; the client
    waited for `services.timeout_s`, and its run ended. One that came back empty had forgotten the reward, too."""
    monkeypatch.setattr(feedback, "PATIENCE_S", 0.5)
    settings = TrainerEnvironment.model_validate({"redis_url": redis_url, "data_dir": tmp_path})
    config = run_of(one_level_model_path)
    with RewardClient(url, own_rewards=[SPEC]) as api, SurrogateClient(serve(create_app(settings))) as trainer:
        api.register(SPEC, True)
        collecting = FeedbackClient(Services(api, trainer), RUN, timeout_s=120.0)
        scored = collecting.post([known_group(0), known_group(1)])
        with connect(redis_url) as client:
            forget(client)
        trainer.create(RUN, config)
        assert collecting.adapt(scored, 0, 1, drift=0.25).version == 1
        assert trainer.status(RUN).replay_groups == 2
        assert trainer.versions(RUN)[-1].drift == 0.25
        trainer.delete(RUN)
