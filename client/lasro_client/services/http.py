"""How the client speaks to LaSRO's services: httpx errors and problem+json become LaSRO's exceptions, once.

http = connect("http://127.0.0.1:8001", api_key, timeout_s=60)
response = send(http, "PUT", "/v1/runs/demo", json={...})
"""

from __future__ import annotations

from typing import Any, Self, TypeVar

import httpx
from pydantic import ValidationError

from lasro import errors, wire
from lasro.errors import ConfigError, LasroError, ServiceError, TimeoutExceededError, UnreachableError
from lasro.service.api_key import checked_api_key

M = TypeVar("M", bound=wire.Message)
KINDS: tuple[type[LasroError], ...] = tuple(
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LasroError) and kind not in (LasroError, ServiceError)
)
"""What a service may raise."""
BY_TYPE = {kind.problem_type(): kind for kind in KINDS}
BY_TITLE = {(kind.http_status, kind.title): kind for kind in KINDS}
"""For services of release 0.1, whose problems have no type; 0.3 need not know them."""


def connect(url: str, api_key: str | None = None, timeout_s: float = 60.0) -> httpx.Client:
    """A client for one service. `timeout_s` bounds each wait for the service, connecting included.

    Raises ConfigError for a URL or a key that is none.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {checked_api_key(api_key)}"}
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"service URL: got {url!r}, expected http://HOST:PORT or https://HOST")
    try:
        return httpx.Client(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            trust_env=False,
        )
    except httpx.InvalidURL as error:
        raise ConfigError(f"service URL: got {url!r} ({error}), expected http://HOST:PORT or https://HOST") from error


def send(http: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    """One request; answers of 400 and above raise.

    Raises UnreachableError, TimeoutExceededError, and for problem+json the exception that the service raised where
    its type says which, else ServiceError. 304 is a plain answer.
    """
    try:
        response = http.request(method, path, **options)
    except httpx.TimeoutException as error:
        detail = f"{http.base_url}{path} did not answer in time ({type(error).__name__}); is the service busy?"
        raise TimeoutExceededError(detail) from error
    except httpx.TransportError as error:
        detail = f"{http.base_url} cannot be reached ({error or type(error).__name__}); is the service running?"
        raise UnreachableError(detail) from error
    if response.status_code >= 400:
        raise service_error(response)
    return response


def service_error(response: httpx.Response) -> LasroError:
    """The exception that a refusing or failing answer stands for."""
    try:
        problem = wire.Problem.model_validate_json(response.content)
    except ValidationError:
        text = response.text[:200].replace("\n", " ")
        return ServiceError(response.status_code, response.reason_phrase or "error", text or "no details")
    kind = BY_TYPE.get(problem.type)
    if problem.type == wire.BLANK_TYPE:
        kind = BY_TITLE.get((response.status_code, problem.title))
    if kind is not None:
        return kind(problem.detail)
    return ServiceError(response.status_code, problem.title, problem.detail)


def message(response: httpx.Response, kind: type[M]) -> M:
    """The body of an answer as a message, msgpack or JSON by its content type; raises WireError."""
    if response.headers.get("content-type", "").startswith(wire.MSGPACK_TYPE):
        return wire.from_msgpack(kind, response.content)
    return wire.from_json(kind, response.content)


class ServiceClient:
    """A connection to one service, closed when the `with` block that opened it ends."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self._http = connect(url, api_key, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
