"""Requests to the reward API over HTTP, beside apps that only read the same body.

All are asked over sixteen connections, in turns, so that what else the machine does falls on each of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.rewards import pictures
from benchmarks.rewards.figures import Figure
from benchmarks.rewards.load import Load, for_seconds, post_all, request_bytes, run
from benchmarks.rewards.processes import DistributedContext, Service
from lasro import wire

BARE, FASTAPI = "bare ASGI app that reads the body", "FastAPI handler that reads the body"
CACHED = "scores from the cache"
UNKNOWN_PNGS, UNKNOWN_WEBPS = "unknown PNGs: checked, scored, stored", "unknown WebPs: decoded, scored, stored"
CONNECTIONS = 16
KNOWN = 16
SLOW_MS = 100
SLOW_CALLS = 8
"""In flight, of a reward that takes SLOW_MS for each."""


@dataclass(frozen=True)
class Contender:
    """Something to be asked; `requests` starts afresh at each call."""

    service: Service
    requests: Callable[[], Iterator[bytes]]


def register(processes: DistributedContext, name: str, delay_ms: int, concurrency: int, cache: bool = True) -> None:
    """A reward that takes eight images a call and answers as soon as the delay has passed."""
    url = f"{processes.apps['scorer'].url}/{pictures.IMAGES}/{delay_ms}"
    spec = wire.RewardSpec(
        name=name,
        url=url,
        protocol=wire.Protocol.NATIVE,
        max_batch=pictures.IMAGES,
        concurrency=concurrency,
        cache=cache,
    )
    httpx.post(f"{processes.api.url}/v1/rewards", json=spec.model_dump(mode="json"), trust_env=False).raise_for_status()


def measure(contenders: dict[str, Contender], repetitions: int, seconds: float) -> dict[str, list[Load]]:
    """Loads by contender, after one that warms up."""
    loads: dict[str, list[Load]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, contender in contenders.items():
            next_request = for_seconds(contender.requests(), seconds, CONNECTIONS)
            load = run(post_all(contender.service.url, contender.service.pid, next_request, CONNECTIONS))
            if repetition:
                loads[name].append(load)
    return loads


def scoring(processes: DistributedContext, repetitions: int, seconds: float) -> list[Figure]:
    """Known and unknown images beside what only reads them."""
    register(processes, "trivial", 0, CONNECTIONS)
    api, pngs, webps = processes.api, pictures.encoded(), pictures.encoded("WEBP")
    again = pictures.known(api.url, "trivial", pngs, KNOWN)
    run(post_all(api.url, api.pid, _once(again), CONNECTIONS))
    only_read = pictures.body("trivial", pngs, "read")
    new_pngs = pictures.unknown(api.url, "trivial", pngs)
    new_webps = pictures.unknown(api.url, "trivial", webps)

    def reader(name: str) -> Contender:
        service = processes.apps[name]
        request = request_bytes(service.url, only_read, wire.MSGPACK_TYPE)
        return Contender(service, lambda: itertools.repeat(request))

    contenders = {
        BARE: reader("bare"),
        FASTAPI: reader("fastapi"),
        CACHED: Contender(api, lambda: itertools.cycle(again)),
        UNKNOWN_PNGS: Contender(api, lambda: new_pngs),
        UNKNOWN_WEBPS: Contender(api, lambda: new_webps),
    }
    figures = _figures(measure(contenders, repetitions, seconds))
    check_scored(processes, again[0])
    return figures


def slow(processes: DistributedContext, repetitions: int, calls: int) -> Figure:
    """How much longer than SLOW_MS / SLOW_CALLS each call of a slow reward takes, which has work waiting all along."""
    register(processes, "slow", SLOW_MS, SLOW_CALLS, cache=False)
    api = processes.api
    requests = pictures.known(api.url, "slow", pictures.encoded(), 1) * calls
    run(post_all(api.url, api.pid, _once(requests[: 2 * SLOW_CALLS]), 2 * SLOW_CALLS))
    ideal_s = SLOW_MS / 1000 * calls / SLOW_CALLS
    loads = [run(post_all(api.url, api.pid, _once(requests), 2 * SLOW_CALLS)) for _ in range(repetitions)]
    overheads = [100 * (load.wall_s / ideal_s - 1) for load in loads]
    name = f"slow reward ({SLOW_MS} ms, {SLOW_CALLS} calls at once): time over the ideal"
    return Figure(name, "%", overheads, at_most=5.0)


def check_scored(processes: DistributedContext, request: bytes | None = None) -> None:
    """Raise RuntimeError where any image was not scored, or `request` is not answered from the cache.

    A failure is answered faster than a score.
    """
    text = httpx.get(f"{processes.api.url}/metrics", trust_env=False).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "lasro_reward_failures_total" and sample.value:
                raise RuntimeError(f"{sample.value:.0f} images failed: {sample.labels}; nothing was measured")
    if request is not None:
        body = request.partition(b"\r\n\r\n")[2]
        headers = {"Content-Type": wire.MSGPACK_TYPE, "Accept": wire.MSGPACK_TYPE}
        answer = httpx.post(f"{processes.api.url}/v1/score", content=body, headers=headers, trust_env=False)
        items = wire.from_msgpack(wire.ScoreReply, answer.content).items
        if any(score.attempts for item in items for score in item.scores.values()):
            raise RuntimeError("a known image was scored again; nothing was measured")


def _figures(loads: dict[str, list[Load]]) -> list[Figure]:
    enough: dict[str, float] = {UNKNOWN_PNGS: 300.0, UNKNOWN_WEBPS: 300.0}
    rates = [Figure(name, "requests/s", [load.rate for load in each], enough.get(name)) for name, each in loads.items()]
    times = [Figure(f"{name}: CPU", "ms/request", [load.cpu_ms for load in each]) for name, each in loads.items()]
    pairs = zip(loads[CACHED], loads[FASTAPI], strict=True)
    ratio = Figure(f"{CACHED} / {FASTAPI}", "", [ours.rate / limit.rate for ours, limit in pairs], at_least=0.35)
    return [*rates, ratio, *times]


def _once(requests: list[bytes]) -> Callable[[], bytes | None]:
    left = iter(requests)
    return lambda: next(left, None)
