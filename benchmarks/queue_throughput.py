"""How fast the queue is, beside what Redis itself does with the same bytes in the same run.

    python benchmarks/queue_throughput.py --results benchmarks/results/queue-2-cpu-cores.md

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import redis
from PIL import Image

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
ENDPOINT_S = 0.02
MIB = 1 << 20


class Figure(NamedTuple):
    """`limit` is what can be had at most in this run, `wanted` what the project asks for."""

    name: str
    value: float
    limit: float | None
    wanted: str


async def endpoint(scope: Any, receive: Any, send: Any) -> None:
    """A native reward that takes 20 ms per call; served by uvicorn as `queue_throughput:endpoint`."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await asyncio.sleep(ENDPOINT_S)
    reply = json.dumps({"scores": [0.5] * len(json.loads(body)["images"])}).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


def submission(index: int, image: bytes, latents: bytes) -> wire.GroupSubmission:
    return wire.GroupSubmission(
        group_id=f"g{index}", round=0, index=index, prompt="p", policy_version=0, rewards=["slow"], stages=[1, 2],
        images=[image, image], latents=latents,
    )  # fmt: skip


def sample_of(group: wire.GroupSubmission) -> bytes:
    fields = group.model_dump(include={"group_id", "round", "index", "prompt", "policy_version", "stages", "latents"})
    return wire.to_msgpack(wire.Sample(**fields, scores={"slow": [0.5, 0.5]}, versions={"slow": 1}))


def rate(count: int, started_s: float) -> float:
    return count / (time.perf_counter() - started_s)


def write_raw(client: redis.Redis, bodies: list[bytes]) -> float:
    """XADD in pipelines of 16, entries/s: what adding can be at most."""
    started_s = time.perf_counter()
    for start in range(0, len(bodies), IN_FLIGHT):
        with client.pipeline(transaction=False) as pipeline:
            for body in bodies[start : start + IN_FLIGHT]:
                pipeline.xadd(RAW, {"sample": body})
            pipeline.execute()
    return rate(len(bodies), started_s)


def read_raw(client: redis.Redis, count: int) -> float:
    """XREADGROUP, XACK and XDEL, 64 entries at a time, entries/s."""
    client.xgroup_create(RAW, "raw", id="0")
    started_s, left = time.perf_counter(), count
    while left:
        reply: Any = client.xreadgroup("raw", "raw", {RAW: ">"}, count=READ_COUNT)
        entries = reply[RAW.encode()][0] if isinstance(reply, dict) else reply[0][1]
        ids = [entry_id for entry_id, _ in entries]
        with client.pipeline(transaction=False) as pipeline:
            pipeline.xack(RAW, "raw", *ids)
            pipeline.xdel(RAW, *ids)
            pipeline.execute()
        left -= len(ids)
    client.delete(RAW)
    return rate(count, started_s)


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
    write_raw_to(client, keys.samples(RUN), bodies)
    stream, left = SampleStream(client, RUN), len(bodies)
    stream.read(0)
    started_s = time.perf_counter()
    while left:
        entries = stream.read(READ_COUNT, block_ms=1000)
        stream.ack([entry_id for entry_id, _ in entries])
        left -= len(entries)
    return rate(len(bodies), started_s)


def write_raw_to(client: redis.Redis, stream: str, bodies: list[bytes]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for number, body in enumerate(bodies):
            pipeline.xadd(stream, {"sample": body})
            if number % READ_COUNT == 0:
                pipeline.execute()
        pipeline.execute()


@contextmanager
def processes(commands: list[list[str]], environment: dict[str, str]) -> Iterator[None]:
    variables = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL) for command in commands]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until_ready(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(f"{url}: not ready after 120 s")


def score_all(url: str, groups: list[wire.GroupSubmission], workers: int) -> float:
    """Groups/s by so many worker processes, one call of the endpoint per group and worker at a time."""
    ports = [free_port() for _ in range(workers)]
    environment = {"LASRO_REDIS_URL": url, "LASRO_ALLOWED_NETWORKS": "127.0.0.0/8", "LASRO_BATCH_WAIT_S": "0"}
    commands = [["env", f"LASRO_PORT={port}", sys.executable, "-m", "lasro_reward_api", "worker"] for port in ports]
    with processes(commands, environment), connect(url) as client:
        for port in ports:
            until_ready(f"http://127.0.0.1:{port}/health/ready")
        started_s = time.perf_counter()
        asyncio.run(add_all(url, groups))
        while client.xlen(keys.WORK):
            time.sleep(0.005)
        return rate(len(groups), started_s)


def used_bytes(client: redis.Redis) -> int:
    info: Any = client.info("memory")
    return info["used_memory"]


async def run_async(url: str, body: Callable[[redis.asyncio.Redis], Awaitable[Any]]) -> None:
    async with connect_async(url) as client:
        await body(client)


def measure(url: str, samples: int, groups: int, size_bytes: list[int]) -> list[Figure]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    noise = np.random.default_rng(0).standard_normal(LATENT_SHAPE).astype(np.float16)
    latents = wire.pack_tensors({"latents": noise})
    made = [submission(index, buffer.getvalue(), latents) for index in range(samples)]
    bodies = [sample_of(group) for group in made]
    size_bytes += [len(wire.to_msgpack(made[0])), len(bodies[0])]
    with connect(url) as client:
        asyncio.run(add_all(url, made[:1]))  # loads the scripts and makes the connections
        read_all(client, bodies[:1])
        delete_run(client, RUN)
        before = used_bytes(client)
        raw_write, raw_read = write_raw(client, bodies), read_raw(client, samples)
        added, again = asyncio.run(add_all(url, made)), asyncio.run(add_all(url, made))
        delete_run(client, RUN)
        read = read_all(client, bodies)
        delete_run(client, RUN)
        one, two = (score_all(url, few, workers) for workers, few in workers_and_groups(url, made, groups))
        delete_run(client, RUN)
        time.sleep(1)
        grown = (used_bytes(client) - before) / MIB
    return [
        Figure("groups added idempotently, 1/s", added, raw_write, ">= 2000"),
        Figure("the same again (nothing changes), 1/s", again, None, ""),
        Figure("samples read and acknowledged, 1/s", read, raw_read, ">= 8000"),
        Figure("groups scored by 1 worker, 1/s", one, 1 / ENDPOINT_S, ""),
        Figure("groups scored by 2 workers, 1/s", two, 2 / ENDPOINT_S, ""),
        Figure("2 workers : 1 worker", two / one, 2.0, ">= 1.7"),
        Figure("memory above the start, MiB", grown, 0.0, "back to the start"),
    ]
