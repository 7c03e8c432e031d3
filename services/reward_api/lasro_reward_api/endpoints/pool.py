"""The endpoints that this process has open, and when each is closed."""

from __future__ import annotations

import ssl

import httpx

from lasro.redis_store.registry import Registration
from lasro_reward_api.endpoints.address_guard import AddressGuard, parse_networks
from lasro_reward_api.endpoints.endpoint import Endpoint
from lasro_reward_api.metrics import RewardMetrics
from lasro_reward_api.settings import RewardApiSettings

MAX_OPEN = 256


class EndpointPool:
    """Open endpoints by reward name and version."""

    def __init__(self, settings: RewardApiSettings, metrics: RewardMetrics) -> None:
        self._settings, self.metrics = settings, metrics
        self._guard = AddressGuard(parse_networks(settings.allowed_networks))
        self._tls: ssl.SSLContext = httpx.create_ssl_context()
        self._open: dict[tuple[str, int, str], Endpoint] = {}
        self._forgotten: set[str] = set()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, registration: Registration) -> Endpoint:
        """The endpoint of exactly this version, opened if need be; raises ConfigError or BlockedError."""
        # The spec too: a Redis that lost its last second gives a version out again.
        key = (registration.spec.name, registration.version, registration.spec.model_dump_json())
        endpoint = self._open.pop(key, None)
        if endpoint is None:
            endpoint = Endpoint(registration, self._settings, self._guard, self._tls, self.metrics)
        self._open[key] = endpoint  # last: most recently used
        self._forgotten.discard(registration.spec.name)
        return endpoint

    async def forget(self, name: str) -> None:
        """Drop the metrics of a deleted reward now, and its connections as soon as no call is in flight."""
        self._forgotten.add(name)
        self.metrics.forget(name)
        await self.tidy()
        self._forgotten &= {key[0] for key in self._open}

    async def tidy(self) -> None:
        """Close endpoints of deleted rewards and old versions, and the longest unused beyond MAX_OPEN.

        One with a call in flight is kept until the next time.
        """
        newest: dict[str, int] = {}
        for name, version, _ in self._open:
            newest[name] = max(version, newest.get(name, 0))
        crowd = list(self._open)[: max(0, len(self._open) - MAX_OPEN)]
        for key in [key for key in self._open if self._is_spare(key, newest) or key in crowd]:
            endpoint = self._open.get(key)
            if endpoint is not None and endpoint.idle:
                del self._open[key]
                await endpoint.aclose()

    def _is_spare(self, key: tuple[str, int, str], newest: dict[str, int]) -> bool:
        return key[1] < newest[key[0]] or key[0] in self._forgotten

    async def aclose(self) -> None:
        for endpoint in self._open.values():
            await endpoint.aclose()
