"""The apps of all services without a Redis, and `python -m openapi_documents OUT`: their documents as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import SecretStr

from lasro.reward_sdk import RewardEnvironment, create_reward_app, reward
from lasro_reward_api.app import create_app as create_reward_api
from lasro_reward_api.settings import RewardApiSettings
from lasro_surrogate_trainer.app import create_app as create_trainer
from lasro_surrogate_trainer.settings import TrainerEnvironment

SERVICES = ("reward_api", "surrogate_trainer", "reward")
RULESET = "extends: ['spectral:oas']\n"


def make_app(service: str, folder: Path, key: str | None = None, root_path: str = "") -> FastAPI:
    """One of SERVICES, with a trainer's runs in `folder`."""
    common: dict[str, Any] = {"redis_url": SecretStr("redis://127.0.0.1:1/"), "root_path": root_path, "api_key": key}
    if service == "reward_api":
        return create_reward_api(RewardApiSettings.model_validate(common))
    if service == "surrogate_trainer":
        return create_trainer(TrainerEnvironment.model_validate(common | {"data_dir": folder}))
    return create_reward_app(reward(lambda images, prompts, metadata: []), RewardEnvironment.model_validate(common))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spectral.yaml").write_text(RULESET)
    for service in SERVICES:
        (folder / f"{service}.json").write_text(json.dumps(make_app(service, folder).openapi(), indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
