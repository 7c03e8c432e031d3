"""Signatures of the Standard Webhooks specification, so that endpoints and the reward API know each other.

    webhook-id: msg_...                        unique to each message
    webhook-timestamp: 1614265330              Unix time in seconds
    webhook-signature: v1,base64(HMAC-SHA256(key, "id.timestamp.body"))

The key is what follows `whsec_` in the secret, base64 of 24 to 64 bytes. Several signatures may stand in one header,
separated by spaces, while a secret is changed. Written from the specification at https://www.standardwebhooks.com;
its Python package would bring five dependencies for these few lines.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Callable, Mapping

from lasro.errors import AuthError, ConfigError

SECRET_PREFIX = "whsec_"
KEY_BYTES = range(24, 65)
TOLERANCE_S = 300
"""How far a message's timestamp may be from now, either way."""
ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"
# No dot, which separates the parts of what is signed.
MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
TIMESTAMP = re.compile(r"[0-9]{1,12}")


def is_signing_secret(secret: str | None) -> bool:
    """Whether a reward's secret is one to sign with; any other is a bearer token."""
    return secret is not None and secret.startswith(SECRET_PREFIX)


def signing_key(secret: str) -> bytes:
    """The key in a secret; raises ConfigError, which does not repeat it."""
    wanted = f"{SECRET_PREFIX} and base64 of {KEY_BYTES[0]} to {KEY_BYTES[-1]} bytes"
    if not is_signing_secret(secret):
        raise ConfigError(f"signing secret: got one without {SECRET_PREFIX}, expected {wanted}")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"signing secret: got one that is not base64, expected {wanted}") from error
    if len(key) not in KEY_BYTES:
        raise ConfigError(f"signing secret: got {len(key)} bytes, expected {wanted}")
    return key


def new_message_id() -> str:
    return f"msg_{uuid.uuid4().hex}"


def reply_id(message_id: str) -> str:
    """The id of the answer to a message: so no answer fits another question, and no question serves as an answer."""
    return f"re_{message_id}"


def signature(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp_s, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def signed_headers(key: bytes, message_id: str, body: bytes, clock: Callable[[], float] = time.time) -> dict[str, str]:
    """The three headers of a message sent now."""
    timestamp_s = int(clock())
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp_s),
        SIGNATURE_HEADER: signature(key, message_id, timestamp_s, body),
    }


def verify(key: bytes, headers: Mapping[str, str], body: bytes, clock: Callable[[], float] = time.time) -> str:
    """The id of a message that is signed with `key` and recent; raises AuthError.

    `headers` finds lower-case names, as httpx' and starlette's do.
    """
    given = [headers.get(name, "") for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER)]
    message_id, timestamp, signatures = given
    if not all(given):
        raise AuthError(f"not signed: expected the headers {ID_HEADER}, {TIMESTAMP_HEADER} and {SIGNATURE_HEADER}")
    if MESSAGE_ID.fullmatch(message_id) is None or TIMESTAMP.fullmatch(timestamp) is None:
        raise AuthError(f"{ID_HEADER} or {TIMESTAMP_HEADER}: got another form than the specification's")
    expected = signature(key, message_id, int(timestamp), body).encode()
    if not any(hmac.compare_digest(expected, one.encode("utf-8", "replace")) for one in signatures.split()):
        raise AuthError(f"{SIGNATURE_HEADER}: does not fit; is the same secret set on both sides?")
    age_s = clock() - int(timestamp)
    if abs(age_s) > TOLERANCE_S:
        raise AuthError(f"{TIMESTAMP_HEADER}: {age_s:.0f} s ago, expected at most {TOLERANCE_S}; check both clocks")
    return message_id


class Verifier:
    """Verifies messages and lets each in once. Only what is signed is remembered, for as long as it is recent."""

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key, self._clock = key, clock
        self._seen: dict[str, float] = {}

    def check(self, headers: Mapping[str, str], body: bytes) -> str:
        """The id of a good message; raises AuthError for others and for one that came before."""
        message_id = verify(self._key, headers, body, self._clock)
        now_s = self._clock()
        while self._seen and next(iter(self._seen.values())) < now_s:
            del self._seen[next(iter(self._seen))]
        if message_id in self._seen:
            raise AuthError(f"{ID_HEADER}: this message came before; each needs an id of its own")
        # It could come again until its timestamp, at most a tolerance ahead of now, is a tolerance in the past.
        self._seen[message_id] = now_s + 2 * TOLERANCE_S
        return message_id
