"""Settings of the reward API, from LASRO_* variables."""

from __future__ import annotations

from pydantic import Field

from lasro.images import MAX_PIXELS
from lasro.service.environment import ServiceEnvironment


class RewardApiSettings(ServiceEnvironment):
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest image, width times height."""
    max_reply_bytes: int = Field(default=8 << 20, ge=1024)
    """Largest reply of a reward endpoint."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    """Tries of one call that fails in transport or with 408, 429 or 5xx."""
    cache_ttl_s: int = Field(default=86_400, ge=1)
    """How long a score is reused for the same image, prompt, metadata and reward version."""
    groups_at_once: int = Field(default=4, ge=0, le=256)
    """Groups that this process scores side by side; 0 leaves them all to `lasro worker` processes."""
    stale_after_s: float = Field(default=10.0, gt=0)
    """A group that another worker has not touched for so long is taken over."""
    group_timeout_s: float = Field(default=3600.0, gt=0, le=86_400)
    """Longest time for one group; what of it is not scored by then has no score."""
    max_requests: int = Field(default=256, ge=1)
    """Requests with images in flight in this process; further ones are answered 503."""
    max_items: int = Field(default=16_384, ge=1)
    """Images, times rewards, waiting or in flight in this process; what would exceed it is answered 503."""
    max_reward_items: int = Field(default=4_096, ge=1)
    """The same for one reward; what would exceed it is answered 429."""
    max_groups: int = Field(default=10_000, ge=1)
    """Groups of all runs that may wait in Redis or be dead-lettered there; further ones are answered 503."""
    max_lag: int = Field(default=10_000, ge=1)
    """Scored groups of one run that its trainer has not read yet; further groups of the run are answered 503."""
    request_timeout_s: float = Field(default=600.0, gt=0, le=3600)
    """Longest time for one score request; callers may ask for less by the header X-Request-Timeout-S."""
    batch_wait_s: float = Field(default=0.01, ge=0, le=1)
    """How long images wait for others to share a call of their reward."""
    circuit_failures: int = Field(default=5, ge=1)
    """Calls of a reward that fail in a row before it is left alone; each of them may be several attempts."""
    circuit_open_s: float = Field(default=10.0, gt=0)
    """How long it is left alone before one call tries it again."""


class WorkerSettings(RewardApiSettings):
    """Settings of a `lasro worker`: the same variables."""

    groups_at_once: int = Field(default=4, ge=1, le=256)
    """Groups that this process scores side by side."""

    @property
    def knows_callers(self) -> bool:
        """A worker needs no key: it answers health and metrics only."""
        return True
