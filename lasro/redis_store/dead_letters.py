"""Dead letters, for a person to look at: groups that were never scored, samples that could not be used.

The id of a dead letter is that of its stream entry; a sample's has its run and a slash before it. Every function may
raise UnreachableError or StorageError.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis

from lasro.errors import NotFoundError
from lasro.redis_store import keys
from lasro.redis_store.connection import redis_errors
from lasro.redis_store.group_queue import group_named
from lasro.redis_store.lua import script
from lasro.redis_store.runs import run_names


class DeadLetter(NamedTuple):
    """`run` and `group` are None where the entry names none, `deliveries` is None for samples."""

    id: str
    kind: str
    """`group`, `sample` or `entry`."""
    run: str | None
    group: str | None
    reason: str
    deliveries: int | None


def dead_letters(client: redis.Redis) -> list[DeadLetter]:
    """All of them, groups first, each kind from old to new."""
    with redis_errors():
        found = [_of_work(*entry) for entry in _entries(client, keys.DEAD_WORK)]
        for run in run_names(client):
            found += [_of_sample(run, *entry) for entry in _entries(client, keys.dead_samples(run))]
    return found


def retry(client: redis.Redis, letter: DeadLetter) -> bool:
    """Put a group back into the queue, or a sample back on its stream; false where there is nothing to put back."""
    if letter.kind == "entry":
        return False
    with redis_errors():
        if letter.run is not None and letter.group is not None:
            names = [keys.DEAD_WORK, keys.WORK, keys.group(letter.run, letter.group)]
            return bool(client.register_script(script("retry_group"))(names, [letter.id, letter.run, letter.group]))
        return _sample_script(client, letter, "1")


def drop(client: redis.Redis, letter: DeadLetter) -> None:
    """Delete a dead letter for good. The id of a dropped group may be submitted again."""
    with redis_errors():
        if letter.run is not None and letter.group is not None:
            names = [keys.DEAD_WORK, keys.group(letter.run, letter.group), keys.groups(letter.run)]
            client.register_script(script("drop_group"))(names, [letter.id, letter.group])
        elif letter.kind == "sample":
            _sample_script(client, letter, "0")
        else:
            client.xdel(keys.DEAD_WORK, letter.id)


def named(client: redis.Redis, ids: list[str]) -> list[DeadLetter]:
    """The letters of those ids, in order; raises NotFoundError naming the first that is missing."""
    known = {letter.id: letter for letter in dead_letters(client)}
    for name in ids:
        if name not in known:
            raise NotFoundError(f"dead letter {name}: not there; expected an id that `lasro queue ls` shows")
    return [known[name] for name in ids]


def _sample_script(client: redis.Redis, letter: DeadLetter, put_back: str) -> bool:
    assert letter.run is not None
    names = [keys.dead_samples(letter.run), keys.samples(letter.run), keys.blobs(letter.run)]
    entry_id = letter.id.rpartition("/")[2]
    arguments = [entry_id, keys.blob(letter.run, ""), put_back]
    return bool(client.register_script(script("retry_sample"))(names, arguments))


def _entries(client: redis.Redis, stream: str) -> list[tuple[str, dict[bytes, bytes]]]:
    found: Any = client.xrange(stream)
    return [(entry_id.decode(), fields) for entry_id, fields in found]


def _of_work(entry_id: str, fields: dict[bytes, bytes]) -> DeadLetter:
    group = group_named(fields)
    run, group_id = group or (None, None)
    deliveries = int(fields[b"deliveries"])
    return DeadLetter(entry_id, "group" if group else "entry", run, group_id, _reason(fields), deliveries)


def _of_sample(run: str, entry_id: str, fields: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(f"{run}/{entry_id}", "sample", run, None, _reason(fields), None)


def _reason(fields: dict[bytes, bytes]) -> str:
    return fields[b"reason"].decode("utf-8", "replace")
