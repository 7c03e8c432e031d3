"""The protocols of reward endpoints, one module each. `base` says what each has to provide."""

from __future__ import annotations

from lasro.wire import Protocol, RewardSpec
from lasro_reward_api.protocols import flow_factory, mapping, native, oip_v2, openai_chat, unirl

SPEAKERS = {
    Protocol.NATIVE: native.SPEAKER,
    Protocol.FLOW_FACTORY: flow_factory.SPEAKER,
    Protocol.UNIRL: unirl.SPEAKER,
    Protocol.OPENAI_CHAT: openai_chat.SPEAKER,
    Protocol.OIP_V2: oip_v2.SPEAKER,
    Protocol.MAPPING: mapping.SPEAKER,
}


def images_per_call(spec: RewardSpec) -> int:
    """`max_batch`, or 1 where the protocol carries one image under the reward's settings."""
    return 1 if SPEAKERS[spec.protocol].one_image(spec.mapping or {}) else spec.max_batch
