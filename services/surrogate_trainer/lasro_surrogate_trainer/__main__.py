"""`python -m lasro_surrogate_trainer`: the service, set up by `LASRO_*` variables."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from lasro.errors import LasroError
from lasro.redis_store.server import refuse_unfit_redis
from lasro.service.serve import run_service
from lasro.validation import explain
from lasro_surrogate_trainer.settings import TrainerEnvironment
from lasro_surrogate_trainer.store import check_folder


def main() -> None:
    try:
        settings = TrainerEnvironment.model_validate({})
        refuse_unfit_redis(settings.redis_url.get_secret_value() if settings.redis_url else None)
        check_folder(settings.data_dir)
        _serve(settings)
    except ValidationError as error:
        sys.exit(f"lasro surrogate trainer: {explain(error)}")
    except LasroError as error:
        sys.exit(f"lasro surrogate trainer: {error}")


def _serve(settings: TrainerEnvironment) -> None:
    import torch  # takes seconds: wrong settings are reported before

    from lasro_surrogate_trainer.app import create_app

    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    run_service(create_app(settings), settings)


if __name__ == "__main__":
    main()
