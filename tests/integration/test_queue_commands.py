"""`lasro queue` and `lasro runs` against a real Redis."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from lasro import wire
from lasro.redis_store import keys
from lasro.redis_store.connection import connect_async
from lasro.redis_store.group_queue import GroupQueue
from lasro_client.cli.main import app

RUN = "queue-commands"


def submission(group_id: str) -> wire.GroupSubmission:
    return wire.GroupSubmission(
        group_id=group_id, round=0, index=0, prompt="p", policy_version=0, rewards=["r"], stages=[1, 2],
        images=[b"a", b"b"], latents=b"l",
    )  # fmt: skip


@pytest.fixture
def url(redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> str:
    """A queue with one group waiting, one claimed, one dead-lettered and an entry that names no group."""
    monkeypatch.setenv("LASRO_REDIS_URL", redis_url)

    async def fill() -> None:
        async with connect_async(redis_url) as client:
            queue = GroupQueue(client)
            for group_id in ("dead", "claimed", "waits"):
                await queue.add(RUN, submission(group_id), 2)
            (entry,) = await queue.take("worker-1", 1, 0, 10_000)
            await queue.dead_letter(entry, "it bites", (RUN, "dead"))
            await queue.claim("worker-1", 1, 0, 10_000)
            redis_client.xadd(keys.WORK, {"junk": "x"})
            *_, junk = await queue.take("worker-2", 2, 0, 10_000)
            await queue.dead_letter(junk, "names no group", None)
            await queue.leave("worker-2")

    asyncio.run(fill())
    return redis_url


def lasro(*arguments: str, expected: int = 0) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == expected, result.output
    return json.loads(result.stdout)


def test_what_waits_where_is_shown(url: str) -> None:
    """Bug: the figures count what is claimed as waiting, or what was dead-lettered as neither."""
    shown = lasro("queue", "ls")
    work = shown["work"]
    assert (work["waiting"], work["claimed"], work["dead"]) == (0, 2, 2)
    assert {worker["name"]: worker["claims"] for worker in work["workers"]} == {"worker-1": 1, "returned": 1}
    assert 0 <= work["oldest_s"] < 600
    (run,) = shown["runs"]
    assert (run["run"], run["groups"], run["queued"], run["unread"]) == (RUN, 3, 2, 0)
    group, entry = shown["dead"]
    assert (group["kind"], group["run"], group["group"], group["reason"]) == ("group", RUN, "dead", "it bites")
    assert (entry["kind"], entry["run"], entry["reason"]) == ("entry", None, "names no group")
    plain = CliRunner().invoke(app, ["queue", "ls"]).stdout
    assert all(text in plain for text in ("worker-1", RUN, "it bites", "names no group"))


def test_retry_and_drop_take_ids_or_all(url: str) -> None:
    """Bug: a command without ids does everything, or one that did nothing reports success."""
    group, entry = (letter["id"] for letter in lasro("queue", "ls")["dead"])
    assert CliRunner().invoke(app, ["queue", "drop", "--yes"]).exit_code == 2
    assert CliRunner().invoke(app, ["queue", "drop", group]).exit_code == 1  # nobody there to confirm
    assert lasro("queue", "retry", group, entry, expected=1) == {"retried": [group], "left": [entry]}
    assert lasro("queue", "drop", "--all", "--yes") == {"dropped": [entry]}
    work = lasro("queue", "ls")["work"]
    assert (work["waiting"], work["dead"]) == (1, 0)


def test_a_run_is_removed_with_every_key(url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    """Bug: a run is removed here and goes on taking memory there; or a run of another name goes with it."""
    root = ["--root", str(tmp_path)]
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"name": RUN, "stage": "train"}))
    redis_client.sadd(keys.RUNS, "elsewhere")
    names = {run["name"]: run["state"] for run in lasro("runs", "ls", *root)["runs"]}
    assert names == {"here": "stopped", "elsewhere": "services"}
    assert lasro("runs", "rm", "here", "--yes", *root)["from"][0] == str(folder)
    assert not folder.exists()
    assert redis_client.keys(f"*{RUN}*") == []
    assert redis_client.xlen(keys.WORK) == 0
    assert lasro("runs", "rm", "elsewhere", "--yes", *root)["removed"] == "elsewhere"
    assert lasro("runs", "ls", *root) == {"runs": []}
