"""The reward API that several suites of it talk to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from starlette.types import ASGIApp

from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings


@pytest.fixture(scope="module")
def url(redis_url: str, serve: Callable[[ASGIApp], str]) -> str:
    settings = RewardApiSettings(redis_url=redis_url, allowed_networks="127.0.0.0/8")  # pyright: ignore[reportArgumentType]
    return serve(create_app(settings))


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[RewardClient]:
    with RewardClient(url) as client:
        yield client


@pytest.fixture(scope="session")
def write_docs(pytestconfig: pytest.Config) -> bool:
    """Whether tests write the parts of pages that they otherwise check."""
    return bool(pytestconfig.getoption("write_docs"))
