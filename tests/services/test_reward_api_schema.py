"""What the OpenAPI document promises, held against generated requests.

Schemathesis is imported where it is used: that takes seconds, and each worker imports this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from starlette.types import ASGIApp

from lasro.wire import MSGPACK_TYPE
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings

MODES = ("positive", "negative")


@pytest.fixture(scope="module")
def document(redis_url: str, serve: Callable[[ASGIApp], str]) -> Any:
    import schemathesis

    @schemathesis.serializer(MSGPACK_TYPE)
    def as_msgpack(_: Any, value: Any) -> Any:
        return msgpack.packb(value, default=str)

    options = RewardApiSettings(redis_url=redis_url)  # pyright: ignore[reportArgumentType]
    return schemathesis.openapi.from_url(f"{serve(create_app(options))}/openapi.json")


@pytest.mark.parametrize("examples", [10, pytest.param(50, marks=pytest.mark.proof)])
@pytest.mark.parametrize("mode", MODES)
def test_every_answer_is_documented_and_none_is_a_server_error(document: Any, mode: str, examples: int) -> None:
    """Bug: some body answers 500, or a status or form that the OpenAPI document does not know."""
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi import checks as of_documents

    promised = [
        checks.not_a_server_error,
        of_documents.status_code_conformance,
        of_documents.content_type_conformance,
        of_documents.response_schema_conformance,
    ]
    for result in document.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
        @settings(
            max_examples=examples,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            database=None,
            derandomize=True,
        )
        def check(case: Any) -> None:
            case.call_and_validate(checks=promised)

        if mode is MODES[0] or operation.body or operation.path_parameters or operation.query:
            check()


def test_bodies_are_described_in_both_forms(document: Any) -> None:
    """Bug: what JSON may hold and what msgpack may hold are described apart, and differ after a while."""
    body = document.raw_schema["paths"]["/v1/rewards"]["post"]["requestBody"]["content"]
    assert body["application/json"] == body[MSGPACK_TYPE] == {"schema": {"$ref": "#/components/schemas/RewardSpec"}}
    assert "flow-factory" in document.raw_schema["components"]["schemas"]["Protocol"]["enum"]


def test_the_bare_route_is_documented_as_any_other(document: Any) -> None:
    """Bug: a route without FastAPI's parameters loses its header, its body or its answers in the document."""
    operation = document.raw_schema["paths"]["/v1/score"]["post"]
    (header,) = operation["parameters"]
    assert (header["name"], header["in"], header["required"]) == ("X-Request-Timeout-S", "header", False)
    assert header["schema"] == {"type": "number", "exclusiveMinimum": 0, "maximum": 3600}
    assert set(operation["requestBody"]["content"]) == {"application/json", MSGPACK_TYPE}
    assert {"200", "401", "404", "413", "422", "429", "500", "502", "503", "504", "507"} <= set(operation["responses"])
