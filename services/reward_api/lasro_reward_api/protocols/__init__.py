"""What reward endpoints speak, one module each; `speaker.py` has the shape they share."""

from __future__ import annotations

from lasro.errors import ConfigError
from lasro.wire import Protocol
from lasro_reward_api.protocols import flow_factory, native
from lasro_reward_api.protocols.speaker import Speaker

SPEAKERS = {Protocol.NATIVE: native.SPEAKER, Protocol.FLOW_FACTORY: flow_factory.SPEAKER}


def speaker(protocol: Protocol) -> Speaker:
    """The implementation of a protocol; raises ConfigError listing those there are."""
    found = SPEAKERS.get(protocol)
    if found is None:
        raise ConfigError(f"protocol: got {protocol}, supported are {', '.join(sorted(SPEAKERS))}")
    return found
