"""The protocols of reward endpoints, one module each. `base` says what each has to provide."""

from __future__ import annotations

from lasro.wire import Protocol, RewardSpec
from lasro_reward_api.protocols import flow_factory, mapping, native, oip_v2, openai_chat, unirl

CODECS = {
    Protocol.NATIVE: native.CODEC,
    Protocol.FLOW_FACTORY: flow_factory.CODEC,
    Protocol.UNIRL: unirl.CODEC,
    Protocol.OPENAI_CHAT: openai_chat.CODEC,
    Protocol.OIP_V2: oip_v2.CODEC,
    Protocol.MAPPING: mapping.CODEC,
}


def images_per_call(spec: RewardSpec) -> int:
    """`max_batch`, or 1 where the protocol carries one image under the reward's settings."""
    return 1 if CODECS[spec.protocol].one_image(spec.mapping or {}) else spec.max_batch
