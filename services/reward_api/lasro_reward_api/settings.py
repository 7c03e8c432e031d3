"""Settings of the reward API, from LASRO_* variables."""

from __future__ import annotations

from pydantic import Field

from lasro.service_kit import ServiceEnvironment


class RewardApiSettings(ServiceEnvironment):
    max_pixels: int = Field(default=4096 * 4096, ge=1)
    """Largest image, width times height."""
    max_reply_bytes: int = Field(default=8 << 20, ge=1024)
    """Largest reply of a reward endpoint."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    """Tries of one call that fails in transport or with 408, 429 or 5xx."""
    cache_ttl_s: int = Field(default=86_400, ge=1)
    """How long a score is reused for the same image, prompt, metadata and reward version."""
    groups_at_once: int = Field(default=4, ge=1, le=256)
    """Groups that this process scores side by side."""
    stale_after_s: float = Field(default=10.0, gt=0)
    """A group that another worker has not touched for so long is taken over."""
