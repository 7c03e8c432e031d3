"""What the OpenAPI documents of all services promise to generators of clients, and 405 answers by them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openapi_documents import SERVICES, make_app
from pydantic import ValidationError
from starlette.types import ASGIApp

from lasro.service.environment import ServiceEnvironment
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app as create_reward_api
from lasro_reward_api.settings import RewardApiSettings

PROBLEM = {"$ref": "#/components/schemas/Problem"}
PREFIX = "/team/lasro"


@pytest.fixture(scope="module", params=SERVICES)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return make_app(request.param, tmp_path_factory.mktemp("runs"))


def asked(app: FastAPI, method: str, path: str) -> httpx.Response:
    """The app's own answer, without a server."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from references(part)


def test_every_operation_has_a_short_name_a_group_and_words_for_people(app: FastAPI) -> None:
    """Bug: a generated client calls `register_v1_rewards_post`, and says nothing of what it does."""
    document = app.openapi()
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    groups = {tag["name"] for tag in document["tags"] if tag["description"]}
    for where, operation in operations(document):
        assert re.fullmatch(r"[a-z]+(_[a-z]+){0,2}", operation["operationId"]), where
        assert len(operation["tags"]) == 1, where
        assert set(operation["tags"]) <= groups, where
        assert operation["summary"], where
        assert operation["description"], where
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (where, parameter["name"])


def test_all_that_is_named_is_there(app: FastAPI) -> None:
    """Bug: a `$ref` points at nothing, or a schema is written out again wherever it is used."""
    document = app.openapi()
    found = set(references(document))
    assert {name.rpartition("/")[2] for name in found} <= document["components"]["schemas"].keys()
    assert all(name.startswith("#/components/schemas/") for name in found)
    assert "$defs" not in str(document)


def test_every_refusal_is_a_typed_problem(app: FastAPI) -> None:
    """Bug: errors were described again in each answer, so that a generator made a class of each, or gave up."""
    for where, operation in operations(app.openapi()):
        refusals = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert {"413", "500"} <= refusals.keys(), where
        for status, answer in refusals.items():
            assert answer["content"] == {"application/problem+json": {"schema": PROBLEM}}, (where, status)
            assert "urn:lasro:problem:" in answer["description"], (where, status)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("key", [None, "secret"])
def test_operations_name_the_key_that_they_want(service: str, key: str | None, tmp_path: Path) -> None:
    """Bug: the document did not say that a key is wanted, and a generated client had no place for one."""
    document = make_app(service, tmp_path, key).openapi()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    wanted = [{"bearer": []}] if key else [{"bearer": []}, {}]
    for where, operation in operations(document):
        is_open = "/health/" in where
        assert operation["security"] == ([] if is_open else wanted), where
        assert ("401" in operation["responses"]) is not is_open, where


def test_tensors_are_binary_bodies(tmp_path: Path) -> None:
    """Bug: generators that know no safetensors left those operations out."""
    paths = make_app("surrogate_trainer", tmp_path).openapi()["paths"]
    gradient = paths["/v1/runs/{run}/gradient"]["post"]
    weights = paths["/v1/runs/{run}/weights"]
    bodies = [gradient["requestBody"], gradient["responses"]["200"], weights["put"]["requestBody"]]
    bodies.append(weights["get"]["responses"]["200"])
    for body in bodies:
        assert set(body["content"]) == {"application/vnd.safetensors", "application/octet-stream"}
        assert all(kind["schema"] == {"type": "string", "format": "binary"} for kind in body["content"].values())


def test_a_405_lists_all_methods_of_its_path(app: FastAPI) -> None:
    """Bug: `Allow` had the methods of one route: POST, for a path that takes GET as well."""
    for path, methods in app.openapi()["paths"].items():
        for method in ("TRACE", "PATCH", "HEAD", "OPTIONS"):
            answer = asked(app, method, path.replace("{", "").replace("}", ""))
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == {name.upper() for name in methods}, (method, path)
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("sent", ["", PREFIX])
def test_a_service_behind_a_path_prefix(service: str, sent: str, tmp_path: Path) -> None:
    """Bug: the page of the documentation looked for the document at the proxy's root; a redirect led out of the prefix,
    and named the inner host; whether the proxy takes the prefix off made the service work or not."""
    app = make_app(service, tmp_path, root_path=PREFIX)
    assert asked(app, "GET", f"{sent}/health/live").json() == {"status": "live"}
    assert f"url: '{PREFIX}/openapi.json'" in asked(app, "GET", f"{sent}/docs").text
    assert asked(app, "GET", f"{sent}/openapi.json").json()["servers"] == [{"url": PREFIX}]
    redirect = asked(app, "GET", f"{sent}/health/live/?a=b")
    assert (redirect.status_code, redirect.headers["location"]) == (307, f"{PREFIX}/health/live?a=b")
    assert asked(app, "GET", f"{sent}/health/alive").status_code == 404
    assert asked(app, "PATCH", f"{sent}/health/live").headers["allow"] == "GET"


@pytest.mark.parametrize("sent", ["", PREFIX])
def test_a_prefix_opens_no_path(sent: str, tmp_path: Path) -> None:
    """Bug: with a prefix, the paths that need no key needed one, or the others did not."""
    app = make_app("reward_api", tmp_path, key="secret", root_path=PREFIX)
    for path in ("/health/live", "/metrics", "/openapi.json"):
        assert asked(app, "GET", sent + path).status_code == 200, path
    for path in ("/v1/rewards", "/docs", "", "/health/live/"):
        assert asked(app, "GET", sent + path).status_code == 401, path


@pytest.mark.parametrize("prefix", ["/", "lasro", "/lasro/", "//host", "/a b", "/a?b"])
def test_a_prefix_that_is_no_path_is_refused(prefix: str) -> None:
    """Bug: links of the documentation lead to another host, or to nothing."""
    with pytest.raises(ValidationError, match="root_path"):
        ServiceEnvironment(root_path=prefix)


def test_the_client_finds_a_service_below_a_prefix(redis_url: str, serve: Callable[[ASGIApp], str]) -> None:
    """Bug: the client asked the proxy's root."""
    settings = RewardApiSettings.model_validate({"redis_url": redis_url, "root_path": PREFIX})
    with RewardClient(serve(create_reward_api(settings)) + PREFIX) as client:
        assert isinstance(client.rewards(), list)
