"""`python -m lasro_reward_api`: serve until SIGTERM."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from lasro.errors import LasroError
from lasro.service_kit import run_service
from lasro.wire import explain
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings


def main() -> None:
    try:
        settings = RewardApiSettings()
        run_service(create_app(settings), settings)
    except ValidationError as error:
        sys.exit(f"LASRO_* settings: {explain(error)}")
    except LasroError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
