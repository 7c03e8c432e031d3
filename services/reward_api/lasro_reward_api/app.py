"""The reward API: a registry of reward endpoints, scoring, and groups on their way to the trainer."""

from __future__ import annotations

from fastapi import FastAPI

from lasro.service.app import create_service
from lasro_reward_api.routes.rewards import reward_routes
from lasro_reward_api.routes.scoring import add_score_route, group_routes
from lasro_reward_api.scoring_process import ScoringProcess
from lasro_reward_api.settings import RewardApiSettings


def create_app(settings: RewardApiSettings) -> FastAPI:
    """The app; its lifespan runs the scoring worker. Raises ConfigError without a usable LASRO_REDIS_URL."""
    process = ScoringProcess(settings, adds=True)
    app = create_service("LaSRO reward API", settings, process.ready, process.lifespan, process.metrics)
    add_score_route(app, process.scorer, settings)
    app.include_router(reward_routes(process.registry, process.scorer, process.endpoints))
    app.include_router(group_routes(process.scorer, process.queue, settings))
    return app
