"""Memory of the reward API over very many requests, nine in ten of them answered from the cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import psutil

from benchmarks.rewards import pictures
from benchmarks.rewards.figures import Figure
from benchmarks.rewards.inbound import CONNECTIONS, KNOWN, check_scored
from benchmarks.rewards.load import post_all, run
from benchmarks.rewards.processes import DistributedContext

KNOWN_SHARE = 9
"""Known requests for each unknown one."""
SAMPLES = 100
WARM_UP = 0.2
"""Of the requests, before memory counts: pools fill, and the allocator finds its size."""
MOST_GROWTH_MIB = 4.0


def growth(processes: DistributedContext, requests: int) -> tuple[Figure, list[float]]:
    """What `requests` add to the process after warm-up, by the line fitted to the samples; and the samples, in MiB."""
    api, pngs = processes.api, pictures.encoded()
    known = itertools.cycle(pictures.known(api.url, "trivial", pngs, KNOWN))
    # Numbers that no other measurement has got to.
    unknown = pictures.unknown(api.url, "trivial", pngs, first=10**9)
    process, sizes_mib = psutil.Process(api.pid), list[float]()
    every = max(1, requests // SAMPLES)

    def next_request(counter: itertools.count[int]) -> Callable[[], bytes | None]:
        def following() -> bytes | None:
            number = next(counter)
            if number % every == 0:
                sizes_mib.append(size_mib(process))
            if number >= requests:
                return None
            return next(known) if number % (KNOWN_SHARE + 1) else next(unknown)

        return following

    run(post_all(api.url, api.pid, next_request(itertools.count()), CONNECTIONS))
    check_scored(processes)
    settled = np.array(sizes_mib[int(WARM_UP * len(sizes_mib)) :])
    slope, _ = np.polyfit(np.arange(len(settled)), settled, 1)
    name = f"memory added by {requests:,} requests after warm-up"
    return Figure(name, "MiB", [float(slope) * requests / every], at_most=MOST_GROWTH_MIB), sizes_mib


def size_mib(process: psutil.Process) -> float:
    """Proportional set size where the system tells it, else resident set size."""
    info = process.memory_full_info()
    return getattr(info, "pss", info.rss) / 2**20
