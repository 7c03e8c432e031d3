"""Problem documents: one type for each exception, and the way back from a type to the exception."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest
from starlette.types import ASGIApp

from lasro import wire
from lasro.errors import (
    LONGEST_MESSAGE,
    BlockedError,
    BudgetError,
    DeviceMemoryError,
    LasroError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    StorageError,
    WireError,
)
from lasro.service.app import create_service
from lasro.service.environment import ServiceEnvironment
from lasro.service.problem import HTTP_PROBLEMS
from lasro_client.services.http import BY_TYPE, KINDS, send, service_error


def answered(status: int, type: str, title: str) -> LasroError:
    """What the client makes of a problem document."""
    problem = wire.Problem(type=type, title=title, status=status, detail="the detail")
    return service_error(httpx.Response(status, content=problem.model_dump_json()))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not ServiceError])
def test_a_message_is_one_line_of_bounded_length(kind: type[LasroError]) -> None:
    """Bug: a library's text went into a message whole: one had 32,533 characters."""
    text = "text of a library,\n" * 2000
    message = str(kind(f"what was got ({text}); what to do"))
    assert len(message) <= LONGEST_MESSAGE
    assert "\n" not in message
    assert message.startswith("what was got (text of a library, text")
    assert message.endswith("); what to do")


def test_every_exception_has_a_type_of_its_own() -> None:
    """Bug: an exception that inherits its parent's type is raised as its parent in the client."""
    assert all("slug" in vars(kind) for kind in KINDS)
    types = [kind.problem_type() for kind in (*KINDS, LasroError, *HTTP_PROBLEMS)]
    assert len(set(types)) == len(types)
    assert all(re.fullmatch(r"urn:lasro:problem:[a-z]+(-[a-z]+)*", found) for found in types)


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_raises_what_the_type_names(kind: type[LasroError]) -> None:
    """Bug: a title that is put better breaks every client."""
    error = answered(kind.http_status, kind.problem_type(), "another title")
    assert type(error) is kind
    assert str(error) == "the detail"


@pytest.mark.parametrize("kind", [NotFoundError, BudgetError, QueueFullError, BlockedError, StorageError, WireError])
def test_services_of_release_0_1_are_understood(kind: type[LasroError]) -> None:
    """Bug: an upgraded client takes the spent budget of a service that is not upgraded yet for an unknown error."""
    assert type(answered(kind.http_status, "about:blank", kind.title)) is kind


def test_an_unknown_type_is_no_exception_of_ours() -> None:
    """Bug: a type of a later release is taken for the exception whose title it shares."""
    error = answered(404, "urn:lasro:problem:of-a-later-release", "not found")
    assert type(error) is ServiceError
    assert "the detail (HTTP 404, not found)" in str(error)


def test_a_service_answers_with_the_type(serve: Callable[[ASGIApp], str]) -> None:
    """Bug: problems are served without their type, or the framework's own refusals with one that nobody documents."""

    async def ready() -> None:
        raise StorageError("no room")

    app = create_service("test", ServiceEnvironment(), ready)

    @app.get("/lost")
    async def lost() -> None:
        raise NotFoundError("run x: unknown")

    @app.get("/large")
    async def large() -> None:
        raise MemoryError

    @app.get("/number/{number}")
    async def number(number: int) -> None:
        return None

    url = serve(app)
    with httpx.Client(base_url=url, trust_env=False) as http:
        for path, expected in (
            ("/lost", (404, NotFoundError.problem_type(), "not found")),
            ("/large", (507, DeviceMemoryError.problem_type(), "out of memory")),
            ("/number/x", (422, "urn:lasro:problem:malformed-request", "malformed request")),
            ("/health/ready", (503, "urn:lasro:problem:not-ready", "not ready")),
            ("/nowhere", (404, "about:blank", "refused")),
        ):
            answer = http.get(path)
            assert answer.headers["content-type"] == "application/problem+json"
            body = answer.json()
            assert (answer.status_code, body["type"], body["title"]) == expected
        with pytest.raises(NotFoundError, match="run x: unknown"):
            send(http, "GET", "/lost")
    assert BY_TYPE[NotFoundError.problem_type()] is NotFoundError
