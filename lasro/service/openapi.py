"""How routes that read and answer wire messages are declared in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from lasro import errors, wire
from lasro.errors import LasroError
from lasro.service.environment import ServiceEnvironment
from lasro.service.problem import HTTP_PROBLEMS, PROBLEM_TYPE

SCHEMAS = "#/components/schemas/"
BINARY_TYPE = "application/octet-stream"
"""What safetensors may be called too, by clients that know no media type for them."""
DESCRIPTION = "Reward fine-tuning of one- and two-step diffusion models. Errors are problem documents (RFC 9457)."
BEARER = "bearer"
TAGS = {
    "health": "Whether the process answers, and whether it can work.",
    "rewards": "Endpoints that score images: registered, changed and tried.",
    "scoring": "Scores of images, at once or in the background.",
    "runs": "What a training run has here.",
    "training": "The surrogate's training and its weights.",
    "surrogate": "Scores of the surrogate, and their gradients.",
    "reward": "Scores of one reward.",
}


_described: dict[str, type[BaseModel]] = {wire.Problem.__name__: wire.Problem}
"""Models that routes describe by name, since FastAPI does not read or write them."""


class DocumentedApi(FastAPI):
    """An app whose OpenAPI document holds every schema that it names, and the key that operations want."""

    def __init__(self, title: str, settings: ServiceEnvironment, **options: Any) -> None:
        super().__init__(
            title=title,
            version="1",
            description=DESCRIPTION,
            contact={"name": "LaSRO"},
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            servers=[{"url": settings.root_path or "/"}],
            generate_unique_id_function=lambda route: route.name,
            **options,
        )
        bearer = {BEARER: list[str]()}
        self._security = [bearer] if settings.api_key is not None else [bearer, {}]

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        operations = [operation for methods in document["paths"].values() for operation in methods.values()]
        for operation in operations:
            operation["security"] = [] if operation.get("tags") == ["health"] else self._security
        used = {tag for operation in operations for tag in operation.get("tags", ())}
        document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]
        components = document.setdefault("components", {})
        components["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer", "description": "LASRO_API_KEY"}}
        schemas = components.setdefault("schemas", {})
        if missing := sorted(_named_schemas(document) - schemas.keys()):
            schemas |= _schemas(missing) | schemas
        return document


def _named_schemas(node: Any) -> set[str]:
    """Those that any `$ref` below this node names."""
    if isinstance(node, list):
        return set().union(*map(_named_schemas, node))
    if not isinstance(node, dict):
        return set()
    reference = node.get("$ref")
    named = {reference.removeprefix(SCHEMAS)} if isinstance(reference, str) else set[str]()
    return named.union(*map(_named_schemas, node.values()))


def _schemas(names: list[str]) -> dict[str, Any]:
    """Schemas of these models, and of all that they are made of."""
    _, schemas = models_json_schema(
        [(_described[name], "validation") for name in names], ref_template=SCHEMAS + "{model}"
    )
    return schemas["$defs"]


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
    return _body(kind, "application/json", wire.MSGPACK_TYPE)


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` for a route that reads JSON by itself."""
    return _body(kind, "application/json")


def _body(kind: type[BaseModel], *media_types: str) -> dict[str, Any]:
    _described[kind.__name__] = kind
    schema = {"$ref": SCHEMAS + kind.__name__}
    content = {name: {"schema": schema} for name in media_types}
    return {"requestBody": {"required": True, "content": content}, "responses": WRONG_TYPE}


def tensor_content() -> dict[str, Any]:
    """`content` of a body that is a safetensors file, under both of its names."""
    return {name: {"schema": {"type": "string", "format": "binary"}} for name in (wire.SAFETENSORS_TYPE, BINARY_TYPE)}


def problems(*statuses: int, is_open: bool = False) -> dict[int | str, dict[str, Any]]:
    """`responses` for a route: the problem+json statuses it can answer with; one that is open wants no key."""
    everywhere = (400, *(() if is_open else (401,)), 403, 408, 413, 431, 500)
    content = {PROBLEM_TYPE: {"schema": {"$ref": SCHEMAS + wire.Problem.__name__}}}
    return {status: {"description": _problem_titles(status), "content": content} for status in (*everywhere, *statuses)}


def _problem_titles(status: int) -> str:
    """The problems of an HTTP status, each with its type."""
    ours = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LasroError)]
    kinds = [*HTTP_PROBLEMS, *ours]
    found = {f"{kind.title} ({kind.problem_type()})" for kind in kinds if kind.http_status == status}
    return "; ".join(sorted(found))


WRONG_TYPE = {"415": problems(415)[415]}
"""Part of `openapi_extra` for a route with a body."""
