"""Flow-Factory's reward server: POST /compute {"prompt": [...], "image": [base64 PNG ...]} -> {"rewards": [...]}.

Written from its client, src/flow_factory/rewards/my_reward_remote.py of X-GenGroup/Flow-Factory at commit
696af0711dbda2d7b717970f82c1af54bdcb5eb6, which appends /compute to the server's URL and treats a reply with a
non-empty "error" as failed. Metadata has no place in that request and is left out.
"""

from __future__ import annotations

from lasro.errors import ConfigError
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, ProtocolCodec, Settings
from lasro_reward_api.protocols.bodies import base64_text, json_parts
from lasro_reward_api.protocols.replies import finite_number, json_object, keys_shown, number_list, refuse_error


def check(settings: Settings) -> None:
    if settings:
        raise ConfigError(f"mapping: got {keys_shown(settings)}, flow-factory takes no settings")


def encode(batch: Batch, settings: Settings) -> HttpRequest:
    return json_parts({"prompt": batch.prompts, "image": [base64_text(image) for image in batch.images]}, "/compute")


def decode(content_type: str, body: bytes, count: int, settings: Settings) -> list[ItemResult]:
    reply = json_object(content_type, body)
    refuse_error(reply, "rewards")
    rewards = number_list(reply, "rewards", count)
    return [finite_number(value, f"rewards[{index}]") for index, value in enumerate(rewards)]


CODEC = ProtocolCodec(check, encode, decode)
