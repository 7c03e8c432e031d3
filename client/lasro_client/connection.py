"""The services of a run: those that its configuration names, or a local stack started for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from lasro.config import RunSettings, SurrogateRun
from lasro.errors import ConfigError, ConflictError, NotFoundError
from lasro_client.local_stack import LocalStack
from lasro_client.reward_client import RewardClient
from lasro_client.surrogate_client import SurrogateClient

BUNDLED_SURROGATE = "assets/surrogate-attribute-binding.safetensors"


class Services(NamedTuple):
    """Clients of both services."""

    rewards: RewardClient
    surrogates: SurrogateClient


@contextmanager
def services(config: RunSettings, folder: Path) -> Iterator[Services]:
    """Connect to the configured URLs, or start everything here; checks that the run's rewards are registered."""
    api_key, timeout_s = os.environ.get("LASRO_API_KEY"), config.services.timeout_s
    if config.services.reward_api is not None and config.services.surrogate_trainer is not None:
        with (
            RewardClient(config.services.reward_api, api_key, timeout_s) as rewards,
            SurrogateClient(config.services.surrogate_trainer, api_key, timeout_s) as surrogates,
        ):
            yield _checked(Services(rewards, surrogates), config)
        return
    with (
        LocalStack(folder / "services", config.rewards) as stack,
        RewardClient(stack.reward_api, api_key, timeout_s) as rewards,
        SurrogateClient(stack.surrogate_trainer, api_key, timeout_s) as surrogates,
    ):
        yield _checked(Services(rewards, surrogates), config)


def _checked(connected: Services, config: RunSettings) -> Services:
    for name in (*config.weights, *config.evaluation.rewards):
        try:
            connected.rewards.reward(name)
        except NotFoundError as error:
            local = config.services.reward_api is None
            remedy = 'add `serve = "module:function"` to it' if local else "register it with `lasro rewards add`"
            raise ConfigError(f"reward {name}: not registered at the reward API; {remedy}") from error
    return connected


def open_surrogate(connected: Services, run: str, config: RunSettings, initial: str | None, resumed: int | None) -> int:
    """Create the run at the trainer, or join it; a new one starts from `initial`. Returns its version.

    `resumed`: the version of the caller's checkpoint, null without one. From it on versions are kept until the caller
    leases a newer one. Raises ConflictError where the trainer has less than that.
    """
    objective = config.reward_objective
    body = SurrogateRun(
        model=config.model,
        surrogate=config.surrogate,
        weights=dict(objective.weights),
        combine=objective.combine,
        floors=dict(objective.floors),
        normalised=tuple(objective.normalised),
    )
    status = connected.surrogates.create(run, body)
    if initial is not None and status.steps == 0:
        path = Path(str(files("lasro").joinpath(BUNDLED_SURROGATE))) if initial == "bundled" else Path(initial)
        try:
            weights = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"initial_surrogate: {path} ({error.strerror}); make one with `lasro pretrain`"
            ) from error
        connected.surrogates.upload_weights(run, weights)
    version = connected.surrogates.status(run).version
    if resumed is not None and version < resumed:
        raise ConflictError(
            f"run {run}: the trainer has version {version}, expected at least {resumed}, that of the checkpoint; its "
            "data are lost or it is another trainer: bring it back, or start over in another folder"
        )
    connected.surrogates.lease(run, version if resumed is None else resumed)
    return version
