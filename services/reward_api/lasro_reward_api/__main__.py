"""`python -m lasro_reward_api`: serve until SIGTERM. `python -m lasro_reward_api worker`: only score queued groups."""

from __future__ import annotations

import gc
import sys

from fastapi import FastAPI
from pydantic import ValidationError

from lasro.errors import ConfigError, LasroError
from lasro.redis_store.server import refuse_unfit_redis
from lasro.service.serve import run_service
from lasro.validation import explain
from lasro_reward_api.app import create_app
from lasro_reward_api.scoring_process import create_worker
from lasro_reward_api.settings import RewardApiSettings, WorkerSettings

YOUNG_OBJECTS = 20_000
"""New objects after which the garbage collector runs. Python's 700 are those of ten requests in flight, and nearly all
are freed without it when these are answered: collecting took a tenth of the time of a cached answer."""


def main(arguments: list[str]) -> None:
    try:
        app, settings = _create(arguments)
        gc.set_threshold(YOUNG_OBJECTS)
        refuse_unfit_redis(settings.redis_url.get_secret_value() if settings.redis_url else None)
        run_service(app, settings)
    except ValidationError as error:
        sys.exit(f"LASRO_* settings: {explain(error)}")
    except LasroError as error:
        sys.exit(str(error))


def _create(arguments: list[str]) -> tuple[FastAPI, RewardApiSettings]:
    if not arguments:
        settings = RewardApiSettings()
        return create_app(settings), settings
    if arguments == ["worker"]:
        settings = WorkerSettings()
        return create_worker(settings), settings
    raise ConfigError(f"python -m lasro_reward_api: got {' '.join(arguments)!r}, expected nothing or 'worker'")


if __name__ == "__main__":
    main(sys.argv[1:])
