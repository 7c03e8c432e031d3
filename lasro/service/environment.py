"""Settings that every service process reads from its environment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceEnvironment(BaseSettings):
    """Settings of a service process, read from `LASRO_*` variables."""

    model_config = SettingsConfigDict(env_prefix="LASRO_", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to bind; 0 takes a free one."""
    listen_fd: int | None = None
    """An already listening socket, inherited from `lasro up`; overrides host and port."""
    api_key: SecretStr | None = None
    """Wanted in `Authorization: Bearer`; required unless bound to loopback."""
    redis_url: SecretStr | None = None
    """Redis 7.0+ or Valkey 8+."""
    allowed_networks: str = ""
    """CIDRs, comma-separated, that registered rewards may live in with plain http."""
    max_body_bytes: int = Field(default=256 << 20, ge=1024)
    """Largest request body."""
    body_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """Longest wait for the next part of a request body; a client that sends none holds its place no longer."""
    log_level: str = "info"
    """Of this process."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for people."""

    @property
    def knows_callers(self) -> bool:
        """Whether strangers are turned away, as they must be unless bound to loopback."""
        return self.api_key is not None
