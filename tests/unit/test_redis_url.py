"""What LASRO_REDIS_URL may be: a wrong one is explained, and never shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lasro.errors import ConfigError
from lasro.redis_store.connection import connect, connect_async
from lasro.redis_store.url import without_password
from lasro_client.services.local_stack import LocalStack

SECRETS = ("xyzzy", "plugh")
"""Halves of the password in every URL here."""


def explanation(call: Callable[[str], object], url: str) -> str:
    with pytest.raises(ConfigError) as raised:
        call(url)
    chained = f"{raised.value} {raised.value.__cause__!r}"
    assert "\n" not in str(raised.value)
    assert not [secret for secret in SECRETS if secret in str(raised.value)], chained
    return str(raised.value)


@pytest.mark.parametrize("call", [connect, connect_async, without_password])
@pytest.mark.parametrize("letter", "/#?[]")
@pytest.mark.parametrize(
    "place",
    [
        "redis://:xyzzy{}plugh@host:6379/0",
        "rediss://me:{}plugh@host",
        "redis://me:xyzzy{}@[::1]:6379",
        "unix://:xyzzy{}plugh@/tmp/redis.sock?db=1",
    ],
)
def test_a_password_that_is_not_encoded_is_explained(call: Callable[[str], object], letter: str, place: str) -> None:
    """Bug: 'Port could not be cast to integer value as PASSWORD', or a server looked for under half of the password."""
    assert "percent-encoded in a name or password: / as %2F" in explanation(call, place.format(letter))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://me:xyzzy", "HOST:PORT follows the last @"),
        ("redis://:xyzzy@host:63x79/0", "HOST:PORT follows the last @"),
        ("redis://:xyzzy@host:99999/0", "HOST:PORT follows the last @"),
        ("redis://:xyzzy@host/first", "the number of a database"),
        ("redis://host?plugh=xyzzy", "a setting behind ?"),
        ("redis://:xyzzy@host?socket_timeout=plugh", "a setting behind ?"),
        ("http://me:xyzzy@host", "begins with redis://"),
        ("xyzzy", "begins with redis://"),
    ],
)
def test_other_mistakes_are_explained_too(url: str, said: str) -> None:
    """Bug: database 0 was taken for one named by letters, an unknown setting was a TypeError at the first command, and
    a port that is none was shown, which is the password where the host was forgotten."""
    for call in (connect, connect_async):
        assert said in explanation(call, url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:p%2Fs%23w%3Fo%5Brd@host:6379/3", {"password": "p/s#w?o[rd", "host": "host", "port": 6379, "db": 3}),
        ("rediss://me:a@b:c@host", {"username": "me", "password": "a@b:c", "host": "host"}),
        ("redis://[::1]:6380", {"host": "::1", "port": 6380}),
        ("redis://host:6379/?db=2", {"host": "host", "db": 2}),
        ("unix:///tmp/a@b/redis.sock", {"path": "/tmp/a@b/redis.sock"}),
        ("unix://me:secret@/tmp/redis.sock?db=1", {"username": "me", "path": "/tmp/redis.sock", "db": 1}),
    ],
)
def test_what_is_right_is_taken(url: str, expected: dict[str, object]) -> None:
    """Bug: a check that refuses an encoded password, an IPv6 address or a socket whose folder has an @."""
    for client in (connect(url), connect_async(url)):
        settings = client.connection_pool.connection_kwargs
        assert {name: settings.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss://me:s%2Fec@ret@host:6379/2?ssl_keyfile=k", "rediss://host:6379/2"),
        ("unix://:secret@/tmp/redis.sock?db=1", "unix:///tmp/redis.sock"),
        ("unix:///tmp/a%20b@c/redis.sock", "unix:///tmp/a%20b@c/redis.sock"),
    ],
)
def test_the_password_is_left_out_of_messages(url: str, shown: str) -> None:
    """Bug: `lasro runs rm` and `lasro up` name the Redis that they work with, password included."""
    assert without_password(url) == shown


def test_a_local_stack_does_not_start_with_a_url_that_would_be_misread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: `lasro up` started every service five times before it said what was wrong with LASRO_REDIS_URL."""
    monkeypatch.setenv("LASRO_REDIS_URL", "redis://:xyzzy/plugh@host")
    with pytest.raises(ConfigError, match="percent-encoded"), LocalStack(tmp_path):
        pass
