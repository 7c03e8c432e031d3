"""How routes that read and answer wire messages are declared in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from lasro import wire
from lasro.service.problem import PROBLEM_TYPE


class BareRoute(APIRoute):
    """A documented route whose endpoint takes the request and returns the response, all by itself.

    It has no parameters for FastAPI to find, check and pass on, which halves what a request costs.
    """

    def get_route_handler(self) -> Callable[..., Any]:
        return self.endpoint


def header_parameter(name: str, kind: TypeAdapter[Any], description: str) -> dict[str, Any]:
    """`openapi_extra` for a bare route that reads an optional header."""
    described = {"name": name, "in": "header", "required": False, "description": description}
    return {"parameters": [described | {"schema": kind.json_schema()}]}


def message_body(kind: type[wire.Message]) -> dict[str, Any]:
    """`openapi_extra` for a route that uses `read_message`: one schema, JSON and msgpack."""
    schema = _inlined(kind.model_json_schema())
    content = {"application/json": {"schema": schema}, wire.MSGPACK_TYPE: {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "responses": WRONG_TYPE}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A pydantic schema with its `$defs` in place: OpenAPI would look for them at the root of the document."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(part) for part in node]
        if not isinstance(node, dict):
            return node
        target = resolve(definitions[node["$ref"].rpartition("/")[2]]) if "$ref" in node else {}
        return target | {key: resolve(value) for key, value in node.items() if key != "$ref"}

    return resolve(schema)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` for a route: the problem+json statuses it can answer with."""
    schema = wire.Problem.model_json_schema()
    content = {PROBLEM_TYPE: {"schema": schema}}
    everywhere = (400, 401, 403, 408, 413, 431, 500)
    return {status: {"description": "problem", "content": content} for status in (*everywhere, *statuses)}


WRONG_TYPE = {"415": problems(415)[415]}
"""Part of `openapi_extra` for a route with a body."""
