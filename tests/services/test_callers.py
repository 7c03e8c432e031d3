"""Who may ask a service: programs with its key, or on loopback without one, but no page of a browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image
from pydantic import SecretStr, ValidationError
from starlette.types import ASGIApp

from lasro.errors import ConfigError
from lasro.reward_sdk import RewardEnvironment, create_reward_app, reward
from lasro.service.app import create_service
from lasro.service.environment import ServiceEnvironment
from lasro_client.services.http import connect
from lasro_client.services.local_stack import LocalStack
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings

EVIL = "https://evil.example"


@reward
def zero(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    return [0.0 for _ in images]


def service(**settings: Any) -> FastAPI:
    async def ready() -> None:
        return None

    return create_service("test", ServiceEnvironment.model_validate(settings), ready)


@pytest.fixture(scope="module")
def keyless(serve: Callable[[ASGIApp], str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serve(service()), trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def keyed(serve: Callable[[ASGIApp], str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serve(service(api_key="s3cr3t\n")), trust_env=False) as client:
        yield client


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("page", [{"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, {}], ids=["page", "program"])
def test_a_page_registers_no_reward(url: str, content_type: str, page: dict[str, str]) -> None:
    """Bug: a page in a browser sent JSON as a form or as text, which asks nobody first, and registered rewards."""
    body = b'{"name": "of-a-page", "url": "http://127.0.0.1:9/", "protocol": "native"}'
    headers = {"Content-Type": content_type} | page
    answer = httpx.post(f"{url}/v1/rewards", content=body, headers=headers, trust_env=False)
    assert answer.status_code == (403 if page else 415)
    assert answer.headers["content-type"] == "application/problem+json"
    assert httpx.get(f"{url}/v1/rewards/of-a-page", trust_env=False).status_code == 404


@pytest.mark.parametrize("path", ["/health/live", "/metrics", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost:80@evil.example"},
        {"Host": "10.0.0.1"},
        {"Host": "0.0.0.0"},
        {"Host": "[::]"},
        {"Host": ""},
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=lambda headers: " ".join(*headers.items()),
)
def test_no_page_reads_from_a_service_without_key(
    keyless: httpx.Client, keyed: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    """Bug: a page whose name is made to lead to loopback read every answer of the API, and one of another port too."""
    answer = keyless.get(path, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["type"] == "urn:lasro:problem:cross-origin"
    assert keyless.request("OPTIONS", path, headers=headers).status_code == 403
    assert keyed.get(path, headers=headers | {"Authorization": "Bearer s3cr3t"}).status_code in (200, 404)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LOCALHOST:8000"},
        {"Host": "localhost.:8000"},
        {"Host": "127.1.2.3:8000"},
        {"Host": "[::1]:8000"},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost:8000", "Sec-Fetch-Site": "none"},
        {"Authorization": "Bearer of another service"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_programs_and_the_own_pages_need_no_key(keyless: httpx.Client, headers: dict[str, str]) -> None:
    """Bug: what shuts pages out shuts out curl, the client, port forwarding or the service's own /docs as well."""
    assert keyless.get("/docs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer s3cr3t", 200),
        ("bearer s3cr3t", 200),
        ("BEARER   s3cr3t", 200),
        ("Bearer s3cr3", 401),
        ("Bearer S3CR3T", 401),
        ("Bearer s3cr3t s3cr3t", 401),
        ("Bearer s3cr3t, Bearer s3cr3t", 401),
        ("Bearer", 401),
        ("", 401),
        ("s3cr3t", 401),
        ("Basic s3cr3t", 401),
        ("Bearer s\xe9cr\xe9t", 401),
    ],
)
def test_what_is_a_key(keyed: httpx.Client, authorization: str, status: int) -> None:
    """Bug: `bearer` was another scheme than `Bearer`, and bytes beyond ASCII ended as 500."""
    answer = keyed.get("/docs", headers={"Authorization": authorization.encode("latin-1")})  # pyright: ignore[reportArgumentType]
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("second", ["Bearer s3cr3t", "Bearer other"])
def test_two_keys_are_refused(keyed: httpx.Client, second: str) -> None:
    """Bug: of two keys the last one was read here, and another one perhaps by a proxy before it."""
    answer = keyed.get("/docs", headers=[("Authorization", "Bearer s3cr3t"), ("Authorization", second)])
    assert answer.status_code == 400
    assert "authorization: got several" in answer.json()["detail"]


@pytest.mark.parametrize("blank", ["", " ", "\n", "a b", "k\u00e9y"])
def test_a_key_that_is_none_opens_nothing(blank: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bug: an empty LASRO_API_KEY counted as a key, and opened a public address to `Bearer ` alone."""
    monkeypatch.setenv("LASRO_API_KEY", blank)
    with pytest.raises(ValidationError, match="LASRO_API_KEY"):
        ServiceEnvironment.model_validate({})
    with pytest.raises(ConfigError, match="LASRO_API_KEY"):
        LocalStack(tmp_path)
    with pytest.raises(ConfigError, match="LASRO_API_KEY"):
        connect("http://127.0.0.1:9", blank)


def test_a_key_from_a_file_has_a_line_break(keyed: httpx.Client) -> None:
    """Bug: a key that a file brought with a line break fitted no header, on neither side."""
    with connect(str(keyed.base_url), "s3cr3t\r\n") as http:
        assert http.get("/docs").status_code == 200


def test_an_empty_signing_secret_opens_nothing() -> None:
    """Bug: an endpoint with an empty LASRO_SIGNING_SECRET was bound to a public address and verified nothing."""
    with pytest.raises(ConfigError, match="signing secret"):
        create_reward_app(zero, RewardEnvironment.model_validate({"signing_secret": SecretStr("")}))


def test_every_body_has_a_type(redis_url: str) -> None:
    """Bug: a route takes a body of whatever type, or calls a compressed one broken; here each route with a body."""
    api = create_app(RewardApiSettings.model_validate({"redis_url": redis_url}))

    async def answers(app: FastAPI) -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return [
                await client.request(method, path.replace("{", "").replace("}", ""), content=b"{}", headers=headers)
                for path, operations in app.openapi()["paths"].items()
                for method, operation in operations.items()
                if "requestBody" in operation
                for headers in (
                    {},
                    {"Content-Type": "text/json"},
                    {"Content-Type": "application/x-msgpack"},
                    {"Content-Type": "application/json", "Content-Encoding": "gzip"},
                )
            ]

    statuses = [answer.status_code for app in (api, create_reward_app(zero)) for answer in asyncio.run(answers(app))]
    assert statuses == [415] * 20
