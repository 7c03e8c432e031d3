"""The scripts, and which commands may be sent again when their reply was lost: decided here and nowhere else."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any

REPEATABLE_COMMANDS = frozenset(
    {
        "GET", "HGET", "HKEYS", "HMGET", "INFO", "PING", "SCARD", "SCRIPT LOAD", "SMEMBERS", "TIME", "XDEL",
        "XINFO CONSUMERS", "XLEN", "XPENDING", "XRANGE",
    }
)  # fmt: skip
"""They only read, or do the second time what they did the first. XADD and HDEL do not, nor does XREADGROUP: what
a lost reply of it held is pending and has to be read in another way."""
REPEATABLE_SCRIPTS = (
    "ack_samples", "add_group", "dead_letter_sample", "dead_letter_work", "delete_run", "drop_group",
    "finish_group", "keep_scores", "keep_work", "look_up_scores", "probe_writes",
)  # fmt: skip
"""The second call finds what the first did, by group or entry id, and changes nothing. That of any other script would
count twice, claim more, or answer that there is nothing to do."""


def script(name: str) -> str:
    """The text of `scripts/NAME.lua`.

    Those that empty the queue are allowed to run when Redis is out of memory; the others add to it.
    """
    return resources.files("lasro.redis_store").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


def may_be_repeated(command: tuple[Any, ...]) -> bool:
    """Whether a command with its arguments may be sent again where nobody knows whether it was carried out."""
    if command[0] == "EVALSHA":
        return command[1] in _repeatable_digests()
    return command[0] in REPEATABLE_COMMANDS


@cache
def _repeatable_digests() -> frozenset[str]:
    return frozenset(hashlib.sha1(script(name).encode()).hexdigest() for name in REPEATABLE_SCRIPTS)
