"""The service as a thread of the process whose client has loaded the run's model: one frozen base for both.

What the two train lies on views of their own over that base (`lasro.models.shared_view`), so neither ever switches an
adapter of the other. They share the prompts' embeddings, behind a lock. All else is as in a process of its own: the
same routes, on loopback, and the same journal in the same folder, from which either goes on.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from lasro.config import SurrogateRun
from lasro.errors import ConfigError
from lasro.models.frozen import FrozenModel, ModelCache
from lasro.redis_store.server import refuse_unfit_redis
from lasro.service.thread import ServiceThread
from lasro.validation import explain
from lasro_surrogate_trainer.app import create_app
from lasro_surrogate_trainer.settings import TrainerEnvironment
from lasro_surrogate_trainer.store import check_folder


def serve(frozen: FrozenModel, run: SurrogateRun, redis_url: str, data_dir: Path, log_path: Path) -> ServiceThread:
    """Start the service; `frozen` is the model of `run` and of no other. Raises ConfigError and StorageError.

    Settings that are not given here are read from `LASRO_*` variables, but for threads, which are those of the process.
    """
    try:
        settings = TrainerEnvironment.model_validate(
            {
                "host": "127.0.0.1",
                "port": 0,
                "listen_fd": None,
                "redis_url": redis_url,
                "data_dir": data_dir,
                "probe_model": None,
            }
        )
    except ValidationError as error:
        raise ConfigError(f"surrogate trainer: {explain(error)}") from error
    refuse_unfit_redis(redis_url)
    check_folder(data_dir)
    models = ModelCache()
    models.put(run.model, run.surrogate.device, frozen)
    service = ServiceThread("surrogate_trainer", create_app(settings, models), settings, log_path, ("lasro.trainer",))
    service.start()
    return service
