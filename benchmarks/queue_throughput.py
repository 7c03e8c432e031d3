"""How fast the queue is, beside what Redis itself does with the same bytes in the same run.

    python benchmarks/queue_throughput.py

A Redis of its own with append-only file (everysec), one producer, one reader, then scoring workers as processes with
an endpoint that takes 20 ms for one group. Memory is compared after the run was deleted.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import redis
from PIL import Image
from slow_endpoint import CALL_S

from lasro import wire
from lasro.redis_store import keys
from lasro.redis_store.connection import connect, connect_async
from lasro.redis_store.embedded import EmbeddedRedis
from lasro.redis_store.group_queue import GroupQueue
from lasro.redis_store.registry import RewardRegistry
from lasro.redis_store.runs import delete_run
from lasro.redis_store.sample_stream import SampleStream

RUN, RAW = "bench", keys.PREFIX + "bench-raw"
IN_FLIGHT, READ_COUNT = 16, 64
LATENT_SHAPE = (2, 4, 62, 64)  # with float16 and the rest of a message just under 65,000 bytes
MIB = 1 << 20


class Figure(NamedTuple):
    """`limit` is what can be had at most in this run, `wanted` what the project asks for."""

    name: str
    value: float
    limit: float | None
    wanted: str


def submission(index: int, image: bytes, latents: bytes) -> wire.GroupSubmission:
    return wire.GroupSubmission(
        group_id=f"g{index}", round=0, index=index, prompt="p", policy_version=0, rewards=["slow"], stages=[1, 2],
        images=[image, image], latents=latents,
    )  # fmt: skip


def sample_of(group: wire.GroupSubmission) -> bytes:
    fields = group.model_dump(include={"group_id", "round", "index", "prompt", "policy_version", "stages", "latents"})
    return wire.to_msgpack(wire.ScoredGroup(**fields, rewards={"slow": [0.5, 0.5]}, versions={"slow": 1}))


def rate(count: int, started_s: float) -> float:
    return count / (time.perf_counter() - started_s)


def write_raw(client: redis.Redis, stream: str, bodies: list[bytes]) -> float:
    """XADD in pipelines of 16, entries/s: what adding can be at most."""
    started_s = time.perf_counter()
    for start in range(0, len(bodies), IN_FLIGHT):
        with client.pipeline(transaction=False) as pipeline:
            for body in bodies[start : start + IN_FLIGHT]:
                pipeline.xadd(stream, {"sample": body})
            pipeline.execute()
    return rate(len(bodies), started_s)


def read_raw(client: redis.Redis, count: int) -> float:
    """XREADGROUP, XACK and XDEL, 64 entries at a time, entries/s."""
    client.xgroup_create(RAW, "raw", id="0")
    started_s, left = time.perf_counter(), count
    while left:
        reply: Any = client.xreadgroup("raw", "raw", {RAW: ">"}, count=READ_COUNT)
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply]
        ids = [entry_id for entries in streams for entry_id, _ in entries]
        with client.pipeline(transaction=False) as pipeline:
            pipeline.xack(RAW, "raw", *ids)
            pipeline.xdel(RAW, *ids)
            pipeline.execute()
        left -= len(ids)
    figure = rate(count, started_s)
    client.delete(RAW)
    return figure


async def add_all(url: str, groups: list[wire.GroupSubmission]) -> float:
    """Groups/s through `GroupQueue.add`, 16 in flight."""
    waiting = iter(groups)
    async with connect_async(url) as client:
        queue = GroupQueue(client)

        async def produce() -> None:
            for group in waiting:
                await queue.add(RUN, group, 2)

        started_s = time.perf_counter()
        await asyncio.gather(*(produce() for _ in range(IN_FLIGHT)))
        return rate(len(groups), started_s)


def read_all(client: redis.Redis, bodies: list[bytes]) -> float:
    """Samples/s read, decoded and acknowledged through `SampleStream`."""
    write_raw(client, keys.samples(RUN), bodies)
    stream, left = SampleStream(client, RUN), len(bodies)
    started_s = time.perf_counter()
    while left:
        entries = stream.read(READ_COUNT, block_ms=1000)
        stream.ack([entry_id for entry_id, _ in entries])
        left -= len(entries)
    return rate(len(bodies), started_s)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(url: str) -> None:
    """Until something answers there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            httpx.get(url, timeout=5, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(f"{url}: nothing answers after 120 s")


@contextmanager
def served(module: list[str], environment: dict[str, str], port: int) -> Iterator[None]:
    """A child process that answers on `port`."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen([sys.executable, "-m", *module], env=variables, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health/live")
        yield
    finally:
        process.terminate()
        process.wait(20)


def score_all(url: str, groups: list[wire.GroupSubmission], workers: int) -> float:
    """Groups/s by so many worker processes, each with one call of the endpoint under way, one group a call."""
    shared = {"LASRO_REDIS_URL": url, "LASRO_ALLOWED_NETWORKS": "127.0.0.0/8", "LASRO_BATCH_WAIT_S": "0"}
    with ExitStack() as stack, connect(url) as client:
        for port in [free_port() for _ in range(workers)]:
            module = ["lasro_reward_api", "worker"]
            stack.enter_context(served(module, {**shared, "LASRO_PORT": str(port)}, port))
        started_s = time.perf_counter()
        asyncio.run(add_all(url, groups))
        while client.xlen(keys.WORK):
            time.sleep(0.005)
        figure = rate(len(groups), started_s)
        if (delivered := client.xlen(keys.samples(RUN))) != len(groups):
            raise RuntimeError(f"{delivered} samples delivered, expected {len(groups)}")
        delete_run(client, RUN)
    return figure


def used_bytes(client: redis.Redis) -> int:
    info: Any = client.info("memory")
    return info["used_memory"]


async def register(url: str, reward_url: str) -> None:
    spec = wire.RewardSpec(
        name="slow", url=reward_url, protocol=wire.Protocol.NATIVE, cache=False, max_batch=2, concurrency=1
    )
    async with connect_async(url) as client:
        await RewardRegistry(client).put(spec, replace=True)


def groups_of(count: int) -> list[wire.GroupSubmission]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    noise = np.random.default_rng(0).standard_normal(LATENT_SHAPE).astype(np.float16)
    latents = wire.pack_tensors({"latents": noise})
    return [submission(index, buffer.getvalue(), latents) for index in range(count)]


def measure(url: str, samples: int, groups: int) -> list[Figure]:
    made, port = groups_of(samples), free_port()
    bodies = [sample_of(group) for group in made]
    asyncio.run(register(url, f"http://127.0.0.1:{port}/"))
    with connect(url) as client, ExitStack() as stack:
        asyncio.run(add_all(url, made[:1]))  # loads the scripts
        read_all(client, bodies[:1])
        delete_run(client, RUN)
        before = used_bytes(client)
        raw_write, raw_read = write_raw(client, RAW, bodies), read_raw(client, samples)
        added, again = asyncio.run(add_all(url, made)), asyncio.run(add_all(url, made))
        delete_run(client, RUN)
        read = read_all(client, bodies)
        delete_run(client, RUN)
        module = ["uvicorn", "--app-dir", str(Path(__file__).parent), "slow_endpoint:app", "--no-access-log"]
        module += ["--port", str(port)]
        stack.enter_context(served(module, {}, port))
        one, two = (score_all(url, made[:groups], workers) for workers in (1, 2))
        time.sleep(1)
        grown = (used_bytes(client) - before) / MIB
    return [
        Figure("groups added idempotently, 1/s", added, raw_write, ">= 2000"),
        Figure("the same groups again, 1/s", again, None, ""),
        Figure("samples read and acknowledged, 1/s", read, raw_read, ">= 8000"),
        Figure("groups scored by 1 worker, 1/s", one, 1 / CALL_S, ""),
        Figure("groups scored by 2 workers, 1/s", two, 2 / CALL_S, ""),
        Figure("2 workers to 1", two / one, 2.0, ">= 1.7"),
        Figure("memory above the start, MiB", grown, 0.0, "< 1"),
    ]


def table(figures: list[Figure]) -> str:
    lines = ["| what | measured | limit in this run | wanted |", "| --- | --- | --- | --- |"]
    for figure in figures:
        limit = "" if figure.limit is None else f"{figure.limit:,.1f}"
        lines.append(f"| {figure.name} | {figure.value:,.1f} | {limit} | {figure.wanted} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=4000, help="entries added and read")
    parser.add_argument("--groups", type=int, default=300, help="groups scored by workers")
    parser.add_argument("--dir", type=Path, default=None, help="where the append-only file goes; absent: a new folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lasro-", dir=given.dir) as folder, EmbeddedRedis(Path(folder)) as server:
        figures = measure(server.url, given.samples, min(given.groups, given.samples))
        with connect(server.url) as client:
            version: Any = client.info("server")
    group = groups_of(1)[0]
    sizes = {"group_bytes": len(wire.to_msgpack(group)), "sample_bytes": len(sample_of(group))}
    print(table(figures))
    about = {
        "machine": f"{os.cpu_count()} cores {platform.machine()}",
        "server": version.get("valkey_version"),
        **sizes,
    }
    print(json.dumps(about | {figure.name: [figure.value, figure.limit] for figure in figures}))


if __name__ == "__main__":
    main()
