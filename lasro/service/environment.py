"""Settings that every service process reads from its environment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lasro.service.api_key import checked_api_key


class ServiceEnvironment(BaseSettings):
    """Settings of a service process, read from `LASRO_*` variables."""

    model_config = SettingsConfigDict(env_prefix="LASRO_", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to bind; 0 takes a free one."""
    listen_fd: int | None = None
    """An already listening socket, inherited from `lasro up`; overrides host and port."""
    root_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$", max_length=256)
    """Path under which a proxy shows this service, such as `/lasro`; whether the proxy takes it off is all the same."""
    api_key: SecretStr | None = None
    """Wanted in `Authorization: Bearer`; required unless bound to loopback."""
    redis_url: SecretStr | None = None
    """Redis 7.0+ or Valkey 8+."""
    allowed_networks: str = ""
    """CIDRs, comma-separated, that registered rewards may live in with plain http."""
    max_body_bytes: int = Field(default=256 << 20, ge=1024)
    """Largest request body."""
    body_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """Longest wait in seconds for the next part of a request body, and for a caller that reads none of its answer."""
    min_body_rate: int = Field(default=16 << 10, ge=1)
    """Bytes a second that a request body has to come with, once it takes longer than the body timeout."""
    max_head_bytes: int = Field(default=16 << 10, ge=1024)
    """Largest request line and headers, in bytes."""
    head_timeout_s: float = Field(default=10.0, gt=0, le=3600)
    """Longest time in seconds for a request line and headers, from the connection or their first byte."""
    max_connections: int = Field(default=1024, ge=1)
    """Open connections at once, at most half of the open files; for a further one the longest waiting is closed."""
    log_level: str = "info"
    """Of this process."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for people."""

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else SecretStr(checked_api_key(value.get_secret_value()))

    @property
    def knows_callers(self) -> bool:
        """Whether strangers are turned away, as they must be unless bound to loopback."""
        return self.api_key is not None
