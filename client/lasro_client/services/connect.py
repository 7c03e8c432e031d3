"""The services of a run: those that its configuration or the environment names, or a local stack started for it."""

from __future__ import annotations

import lzma
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from lasro.config import RewardSettings, ServiceSettings, SurrogateRun
from lasro.errors import ConfigError, ConflictError, NotFoundError
from lasro.service.api_key import api_key_from_environment
from lasro.training.distributed import DistributedContext, on_one_machine
from lasro.wire import RewardInfo, RewardSpec
from lasro_client.services.in_process_trainer import InProcessTrainer
from lasro_client.services.local_stack import LocalStack
from lasro_client.services.reward_client import RewardClient
from lasro_client.services.surrogate_client import SurrogateClient

BUNDLED_SURROGATE = "assets/surrogate-attribute-binding.safetensors.xz"
URL_VARIABLES = ("LASRO_REWARD_API_URL", "LASRO_SURROGATE_TRAINER_URL")


class Urls(NamedTuple):
    """Where both services are."""

    reward_api: str
    surrogate_trainer: str
    own_rewards: tuple[RewardSpec, ...] = ()
    """What was registered there for this run, to be registered again should Redis lose it."""


class Services(NamedTuple):
    """Clients of both services."""

    rewards: RewardClient
    trainer: SurrogateClient | None
    """None where it was not started, for a method that needs no surrogate."""
    local: bool = False
    """Whether they were started here, for this run."""

    @property
    def surrogates(self) -> SurrogateClient:
        """The trainer's client, where there is a trainer."""
        assert self.trainer is not None, "the method needs no surrogate"
        return self.trainer


@contextmanager
def services(
    settings: ServiceSettings,
    rewards: Sequence[RewardSettings],
    folder: Path,
    peers: DistributedContext | None = None,
    trainer_cores: float = 1.0,
    also_scored: Sequence[str] = (),
    in_process: InProcessTrainer | None = None,
) -> Iterator[Services]:
    """Connect to the services' URLs, or start everything here with these rewards; `folder` then keeps their data.

    Raises ConfigError for a reward, or one of the names `also_scored`, that is not registered.

    Of several processes the main one starts them. A trainer started here has threads for `trainer_cores` of all cores;
    with 0 none is started. `in_process`: the trainer to be started instead, in this process.
    """
    api_key, timeout_s, peers = api_key_from_environment(), settings.timeout_s, peers or DistributedContext()
    with ExitStack() as exits:
        known = urls(settings)
        local = known is None
        if known is None:
            start = partial(_started_here, exits, rewards, folder, trainer_cores, in_process)
            known = peers.on_main_and_broadcast(start, Urls)
        reward_client = exits.enter_context(RewardClient(known.reward_api, api_key, timeout_s, known.own_rewards))
        trainer = None
        if known.surrogate_trainer:
            trainer = exits.enter_context(SurrogateClient(known.surrogate_trainer, api_key, timeout_s))
        connected = Services(reward_client, trainer, local)
        for name in also_scored:
            _registered(connected, name)
        for reward in rewards:
            _check_settings(reward, _registered(connected, reward.name))
        yield connected


def _started_here(
    exits: ExitStack,
    rewards: Sequence[RewardSettings],
    folder: Path,
    trainer_cores: float,
    in_process: InProcessTrainer | None,
) -> Urls:
    if not on_one_machine():
        raise ConfigError(
            "services: got no URLs, but processes on several machines; start the services where all reach them and "
            f"set {' and '.join(URL_VARIABLES)}"
        )
    with_trainer = trainer_cores > 0
    stack = LocalStack(folder / "services", rewards, with_trainer, trainer_cores, in_process=in_process)
    exits.enter_context(stack)
    return Urls(stack.reward_api, stack.surrogate_trainer, tuple(stack.registered))


def urls(settings: ServiceSettings) -> Urls | None:
    """Where the services are: as the settings say, else as the environment does; None where neither says anything.

    Raises ConfigError for an environment that names only one of them.
    """
    if settings.reward_api is not None and settings.surrogate_trainer is not None:
        return Urls(settings.reward_api, settings.surrogate_trainer)
    given = [os.environ.get(name) or None for name in URL_VARIABLES]
    reward_api, surrogate_trainer = given
    if reward_api is not None and surrogate_trainer is not None:
        return Urls(reward_api, surrogate_trainer)
    if given != [None, None]:
        raise ConfigError(
            f"{' and '.join(URL_VARIABLES)}: got one of them; set both, or neither to start a local stack"
        )
    return None


def _registered(connected: Services, name: str) -> RewardInfo:
    try:
        return connected.rewards.reward(name)
    except NotFoundError as error:
        remedy = 'add `serve = "module:function"` to it' if connected.local else "register it with `lasro rewards add`"
        raise ConfigError(f"reward {name}: not registered at the reward API; {remedy}") from error


def _check_settings(reward: RewardSettings, info: RewardInfo) -> None:
    """Raise ConfigError where a reward of another owner is registered otherwise than the run's settings say."""
    for key, value in reward.registered.items():
        if getattr(info, key) != value:
            raise ConfigError(
                f"reward {reward.name}: got {key} = {value}, but it is registered with {getattr(info, key)}; change "
                "that with `lasro rewards add --replace`, or leave the setting out"
            )


def open_surrogate(connected: Services, run: str, body: SurrogateRun, initial: str | None, resumed: int | None) -> int:
    """Create the run at the trainer, or join it; a new one starts from `initial`. Returns its version.

    `resumed`: the version of the caller's checkpoint, None without one. From it on versions are kept until the caller
    leases a newer one. Raises ConflictError where the trainer has less than that.
    """
    status = connected.surrogates.create(run, body)
    if initial is not None and status.steps == 0:
        connected.surrogates.upload_weights(run, surrogate_weights(initial))
    version = connected.surrogates.status(run).version
    if resumed is not None and version < resumed:
        raise ConflictError(
            f"run {run}: the trainer has version {version}, expected at least {resumed}, that of the checkpoint; its "
            "data are lost or it is another trainer: bring it back, or start over in another folder"
        )
    connected.surrogates.lease(run, version if resumed is None else resumed)
    return version


def surrogate_weights(initial: str) -> bytes:
    """The safetensors that an `initial_surrogate` names: `bundled`, or a file. Raises ConfigError for one not there."""
    if initial == "bundled":
        return lzma.decompress(files("lasro").joinpath(BUNDLED_SURROGATE).read_bytes())
    try:
        return Path(initial).read_bytes()
    except OSError as error:
        raise ConfigError(f"initial_surrogate: {initial} ({error.strerror}); make one with `lasro pretrain`") from error
