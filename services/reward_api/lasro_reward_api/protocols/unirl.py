"""UniRL's reward service: POST /score {"requests": [...]} -> {"results": [...], "errors": [...]}, one entry per image.

Written from unirl-reward-service/reward_service/schemas.py, server.py and scorers/base.py of Tencent-Hunyuan/UniRL at
commit 1a7b501e8fe8517b432a130220d2ff462f9b5afa. A request holds `history` (turns of text and base64 image, here one),
`required_rewards` and `metadata` (an object or null). The answer is results[i][reward][metric] -> number, or
errors[i][reward] -> text where that reward failed. A scorer marks one item that it could not score with NaN, which
leaves the service as null; both of these become `Rejected`.

    mapping = {"reward": "unified_reward", "metric": "alignment"}    # metric only where a reward has several
"""

from __future__ import annotations

from typing import Any

from lasro.errors import WireError
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, ProtocolCodec, Rejected, Settings
from lasro_reward_api.protocols.bodies import base64_text, json_parts
from lasro_reward_api.protocols.options import Options, Text, parsed
from lasro_reward_api.protocols.replies import finite_number, json_object, keys_shown, number_list


class UniRLOptions(Options):
    reward: Text
    """One of the names under GET /rewards of the service."""
    metric: Text | None = None


def check(settings: Settings) -> None:
    parsed(UniRLOptions, settings)


def encode(batch: Batch, settings: Settings) -> HttpRequest:
    rewards = [parsed(UniRLOptions, settings).reward]
    requests = [
        {
            "history": [{"text": prompt, "image_b64": base64_text(image)}],
            "required_rewards": rewards,
            "metadata": _object_or_null(metadata),
        }
        for prompt, image, metadata in zip(batch.prompts, batch.images, batch.metadata, strict=True)
    ]
    return json_parts({"requests": requests}, "/score")


def _object_or_null(metadata: Any) -> dict[str, Any] | None:
    if metadata is None or isinstance(metadata, dict):
        return metadata
    raise WireError(f"metadata: got {type(metadata).__name__}, expected an object or null, which is all unirl carries")


def decode(content_type: str, body: bytes, count: int, settings: Settings) -> list[ItemResult]:
    options = parsed(UniRLOptions, settings)
    reply = json_object(content_type, body)
    results = number_list(reply, "results", count)
    # The schema's default is an empty list, so a service without failures may leave it out.
    errors = number_list(reply, "errors", count) if reply.get("errors") else [{}] * count
    return [_answer(*pair, options, index) for index, pair in enumerate(zip(results, errors, strict=True))]


def _answer(result: Any, error: Any, options: UniRLOptions, index: int) -> ItemResult:
    for name, value in (("results", result), ("errors", error)):
        if not isinstance(value, dict):
            raise WireError(f"{name}[{index}]: got {type(value).__name__}, expected an object")
    metrics, reason = result.get(options.reward), error.get(options.reward)
    if reason is None:
        return _number(metrics, options, f"results[{index}].{options.reward}")
    if not isinstance(reason, str) or not reason:
        raise WireError(f"errors[{index}].{options.reward}: got {type(reason).__name__}, expected a reason")
    if metrics is not None:
        raise WireError(f"results[{index}].{options.reward}: got a value beside an error, expected none")
    return Rejected(reason[:500])


def _number(metrics: Any, options: UniRLOptions, where: str) -> ItemResult:
    if not isinstance(metrics, dict):
        raise WireError(f"{where}: got {type(metrics).__name__} and no error, expected an object of metrics")
    if options.metric is None and len(metrics) != 1:
        raise WireError(f"{where}: got the metrics {keys_shown(metrics)}, expected one; name it in mapping.metric")
    name = options.metric or next(iter(metrics))
    if name not in metrics:
        raise WireError(f"{where}: got the metrics {keys_shown(metrics)}, expected {name!r} among them")
    if metrics[name] is None:
        return Rejected(f"{where}: null, the service's mark for an image that its scorer could not score"[:500])
    return finite_number(metrics[name], where)


CODEC = ProtocolCodec(check, encode, decode)
