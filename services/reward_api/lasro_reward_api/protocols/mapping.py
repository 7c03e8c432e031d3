"""Any JSON service, by a template of its request and a path to the scores in its reply.

    mapping = {"request": {"items": {"$each": {"text": "{{prompt}}", "img": "{{image}}"}}},
               "scores": "items[*].score", "errors": "items[*].error"}                        one call per batch
    mapping = {"request": {"q": "{{prompt}}", "url": "data:{{image_type}};base64,{{image}}"},
               "scores": "result.score"}                                                      one call per image

{{prompt}}, {{image}} (base64), {{image_type}} (such as image/png), {{metadata}} and {{metadata.some.key}} stand in
strings. A string that is one placeholder becomes the value itself, so metadata keeps its type; within a longer string,
what is not text is written as JSON. {"$each": X} becomes the list of X for every image; without it, a call carries one
image. `errors` leads to the service's own reason for an item that it could not score. Paths: see json_path.py. Scores
are numbers; with `text`, `words` or `pattern` they may be text: see text_scores.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from lasro.errors import WireError
from lasro.service.error_text import error_of_json
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, ProtocolCodec, Settings
from lasro_reward_api.protocols.bodies import base64_text, image_type, json_parts
from lasro_reward_api.protocols.json_path import Every, parse_path, select
from lasro_reward_api.protocols.options import Json, Options, parsed
from lasro_reward_api.protocols.replies import LONGEST_QUOTE, json_value, score_or_reason
from lasro_reward_api.protocols.text_scores import Number, Pattern, ScoreReader, Words, check_scale

EACH = "$each"
PLACEHOLDER = re.compile(r"\{\{(prompt|image|image_type|metadata(?:\.[A-Za-z0-9_-]+)*)\}\}")
MAX_DEPTH = 32


def _path(text: str) -> str:
    parse_path(text)
    return text


class MappingOptions(Options):
    request: Json
    scores: Annotated[str, AfterValidator(_path)]
    errors: Annotated[str, AfterValidator(_path)] | None = None
    text: bool = False
    """Whether a score may come as text that states a number."""
    scale: tuple[Number, Number] | None = Field(default=None, strict=False)
    """[low, high] of the scores, mapped to [0, 1]; absent: scores stay as they are."""
    words: Words | None = None
    """Text scores and their values, such as {"good": 1, "bad": 0}."""
    pattern: Pattern | None = None
    """A regular expression whose one group is the score in a text; all that it matches must agree."""

    @model_validator(mode="after")
    def _reads_scores(self) -> MappingOptions:
        if self.scale is not None:
            check_scale(self.scale)
        if self.words is not None and (self.text or self.scale is not None):
            raise ValueError("words: got text or scale as well, expected one or the other")
        return self

    @model_validator(mode="after")
    def _carries_images(self) -> MappingOptions:
        found = list(_placeholders(self.request))
        if not any(name == "image" for name, _ in found):
            raise ValueError("request: got no {{image}}, expected one, since the scorer has to see it")
        batched = _has_each(self.request)
        if outside := sorted({name for name, in_each in found if batched and not in_each}):
            raise ValueError(f"request: got {outside} outside {EACH}, expected all placeholders inside")
        if not batched and any(Every.ENTRY in parse_path(path) for path in (self.scores, self.errors) if path):
            raise ValueError(f"request: got no {EACH} but paths with [*], expected paths to one value")
        return self


def _placeholders(template: Any, in_each: bool = False, depth: int = 0) -> Iterator[tuple[str, bool]]:
    """Each placeholder and whether it is inside `$each`; raises ValueError for what is no template."""
    if depth > MAX_DEPTH:
        raise ValueError(f"request: got more than {MAX_DEPTH} levels, expected fewer")
    if isinstance(template, str):
        if "{{" in PLACEHOLDER.sub("", template):
            raise ValueError(f"request: got {template[:60]!r}, expected {{{{prompt}}}}, image, image_type or metadata")
        yield from ((name, in_each) for name in PLACEHOLDER.findall(template))
    elif isinstance(template, list):
        for entry in template:
            yield from _placeholders(entry, in_each, depth + 1)
    elif isinstance(template, dict):
        if EACH in template and (in_each or len(template) > 1):
            raise ValueError(f"request: got {EACH} beside other keys or inside another, expected it alone")
        if odd := [key for key in template if "{{" in key]:
            raise ValueError(f"request: got the key {odd[0][:60]!r}, expected placeholders in values only")
        for key, entry in template.items():
            yield from _placeholders(entry, in_each or key == EACH, depth + 1)


def _has_each(template: Any) -> bool:
    if isinstance(template, dict):
        return EACH in template or any(map(_has_each, template.values()))
    return isinstance(template, list) and any(map(_has_each, template))


@dataclass(frozen=True)
class _Item:
    prompt: str
    image: bytes
    metadata: Any

    def value(self, name: str) -> Any:
        """What a placeholder stands for; raises WireError for metadata that is not there."""
        kind, *keys = name.split(".")
        if kind == "metadata":
            return select(tuple(keys), self.metadata, "metadata")
        if kind == "prompt":
            return self.prompt
        return base64_text(self.image) if kind == "image" else image_type(self.image)

    def text(self, name: str) -> str:
        value = self.value(name)
        return value if isinstance(value, str) else json.dumps(value)


def _filled(template: Any, item: _Item | None, items: list[_Item]) -> Any:
    if isinstance(template, str) and item is not None:
        whole = PLACEHOLDER.fullmatch(template)
        return item.value(whole[1]) if whole else PLACEHOLDER.sub(lambda found: item.text(found[1]), template)
    if isinstance(template, list):
        return [_filled(entry, item, items) for entry in template]
    if isinstance(template, dict):
        if EACH in template:
            return [_filled(template[EACH], one, items) for one in items]
        return {key: _filled(entry, item, items) for key, entry in template.items()}
    return template


def check(settings: Settings) -> None:
    parsed(MappingOptions, settings)


def one_image(settings: Settings) -> bool:
    return not _has_each(settings.get("request"))


def encode(batch: Batch, settings: Settings) -> HttpRequest:
    template = parsed(MappingOptions, settings).request
    items = [_Item(*item) for item in zip(batch.prompts, batch.images, batch.metadata, strict=True)]
    if _has_each(template):
        return json_parts(_filled(template, None, items))
    [item] = items
    return json_parts(_filled(template, item, items))


def decode(content_type: str, body: bytes, count: int, settings: Settings) -> list[ItemResult]:
    options = parsed(MappingOptions, settings)
    reply = json_value(content_type, body)
    try:
        return _results(reply, count, options)
    except WireError as error:
        said = error_of_json(reply)[:LONGEST_QUOTE] if isinstance(reply, dict) else ""
        raise WireError(f"{error}; the reply says: {said}" if said else str(error)) from error


def _score(options: MappingOptions, value: Any, where: str) -> float:
    """A score as the settings say that it comes."""
    reader = ScoreReader(options.scale, options.words, options.pattern)
    if not isinstance(value, str):
        if options.pattern is not None:
            raise WireError(f"{where}: got {type(value).__name__}, expected text, which mapping.pattern is for")
        return reader.read_value(value, where)
    if not (options.text or options.words or options.pattern):
        raise WireError(f"{where}: got str, expected a number; mapping.text or mapping.words take text")
    return reader.read_text(value, where)


def _results(reply: Any, count: int, options: MappingOptions) -> list[ItemResult]:
    # Where there are errors, a score may be absent; that it has a reason is checked below.
    scores = select(parse_path(options.scores), reply, optional=options.errors is not None)
    errors = None if options.errors is None else select(parse_path(options.errors), reply, optional=True)
    read = partial(_score, options)
    if not _has_each(options.request):
        return [score_or_reason(scores, errors, 0, read)]
    scores, errors = _column(scores, "scores", count), _column(errors, "errors", count)
    return [score_or_reason(*pair, index, read) for index, pair in enumerate(zip(scores, errors, strict=True))]


def _column(values: Any, name: str, count: int) -> list[Any]:
    if values is None and name == "errors":
        return [None] * count
    if not isinstance(values, list):
        raise WireError(f"{name}: got {type(values).__name__} where mapping.{name} leads, expected a list")
    if len(values) != count:
        raise WireError(f"{name}: got {len(values)}, expected one per image ({count})")
    return values


CODEC = ProtocolCodec(check, encode, decode, one_image)
