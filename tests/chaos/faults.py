"""Which faults come, in which order, and how each is done. The order follows from the seed."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx

from tests.chaos import proxy, scorer
from tests.chaos.power import Power
from tests.chaos.workload import RUNS
from tests.chaos.world import World
from tests.support.redis_clock import can_set_clock, set_clock

SHARES = {
    "cut-before": 140, "cut-within": 60, "cut-after": 240, "stall": 40, "swallow": 25, "slow": 30, "error": 110,
    "nan": 30, "zeros": 30, "html": 30, "pause": 70, "kill": 120, "end": 25, "power-cut": 20, "clock": 40,
    "redis-clock": 30, "disk-full": 15, "cold": 8, "dies": 0,
}  # fmt: skip
"""Of a thousand or so. What dies for good does so once: each kind comes once before shares decide."""
LINKS = {"redis": 6, "api": 3, "trainer": 2, "scorer": 2}
ANSWERED_SOON = ("redis", "api", "scorer")
"""Where a reply that never comes is given up within seconds."""
PRODUCERS = [f"producer-{run}" for run in RUNS]
VICTIMS = {"worker-1": 8, "worker-2": 8, "reward_api": 6, "redis": 5, "surrogate_trainer": 3, "scorer": 2}
VICTIMS |= dict.fromkeys(PRODUCERS, 4)
ENDED = ("worker-1", "reward_api", "surrogate_trainer", "scorer")
RECOVERY_S = 300.0
"""After which a process is taken for dead for good; what it took is recorded."""
PROGRESS_S = 30.0
LONGEST_JUMP_S = 7200.0


class Fault(NamedTuple):
    """`seconds`: how long, or how far for a clock."""

    kind: str
    target: str
    seconds: float

    @property
    def name(self) -> str:
        """With the target, where that is a process."""
        return f"{self.kind} {self.target}" if self.kind in ("kill", "end", "pause") else self.kind


def faults(seed: int) -> Iterator[Fault]:
    """Without end. Each kind comes once before they come by their shares, so that a short run has all."""
    rng = random.Random(seed)
    shares = {kind: share for kind, share in SHARES.items() if kind not in not_injectable()}
    first = list(shares)
    rng.shuffle(first)
    while True:
        kind = first.pop() if first else _pick(rng, shares)
        yield Fault(kind, *_details(kind, rng))


def not_injectable() -> list[str]:
    """Kinds that this machine has no means for."""
    return [] if can_set_clock() else ["redis-clock"]


def _pick(rng: random.Random, shares: dict[str, int]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def _details(kind: str, rng: random.Random) -> tuple[str, float]:
    if kind in proxy.KINDS:
        links = {name: LINKS[name] for name in ANSWERED_SOON} if kind == "swallow" else LINKS
        return _pick(rng, links), rng.uniform(0.5, 2.0)
    if kind in scorer.KINDS:
        return "scorer", rng.uniform(2.0, 8.0)
    if kind == "pause":
        return _pick(rng, VICTIMS), rng.choice([rng.uniform(0.2, 1.5), rng.uniform(3.5, 5.0)])
    if kind == "kill":
        return _pick(rng, VICTIMS), 0.0
    if kind == "end":
        return rng.choice(ENDED), 0.0
    if kind == "power-cut":
        return "redis", rng.uniform(0.1, 0.95)
    if kind in ("clock", "redis-clock"):
        return "redis" if kind == "redis-clock" else "all", rng.uniform(-LONGEST_JUMP_S, LONGEST_JUMP_S)
    return "surrogate_trainer", rng.uniform(0.5, 1.5)


class Injector:
    """Does one fault after the other, and sees to it that what was killed comes back."""

    def __init__(self, world: World, power: Power, progress: Callable[[], int]) -> None:
        self._world, self._power, self._progress = world, power, progress
        self.done: Counter[str] = Counter()
        self.recovery_s: dict[str, float] = {}
        """Longest time until a killed process worked again, the others' faults included."""
        self.violations: list[str] = []
        self._recovering: set[str] = set()
        self._later: deque[Fault] = deque()
        self._threads: list[threading.Thread] = []

    @property
    def count(self) -> int:
        """Faults that struck."""
        return self.done.total()

    def next(self, coming: Iterator[Fault]) -> None:
        """Do the next one whose target is there."""
        for _ in range(len(self._later)):
            if self._try(fault := self._later.popleft()):
                return
            self._later.append(fault)
        if not self._try(fault := next(coming)):
            self._later.append(fault)

    def _try(self, fault: Fault) -> bool:
        if fault.target in self._recovering:
            return False
        if self._strike(fault):
            self.done[fault.name] += 1
        return True

    def _strike(self, fault: Fault) -> bool:
        world, (kind, target, seconds) = self._world, fault
        if kind in proxy.KINDS:
            return world.links[target].strike(kind, seconds)
        if kind in scorer.KINDS:
            return self._fail_endpoint(kind, seconds)
        if kind == "pause":
            return self._pause(target, seconds)
        if kind in ("clock", "redis-clock"):
            set_clock(world.clock if kind == "clock" else world.redis_clock, seconds)
            return True
        if kind == "disk-full":
            pid = world.pid(target)
            if pid is not None:
                world.disk.be_full(seconds, pid)
            return pid is not None
        self._recovering.add(target)
        killed_at = time.monotonic()
        if kind == "power-cut":
            struck = self._power.cut(seconds)
        else:
            struck = world.signal(target, signal.SIGKILL if kind == "kill" else signal.SIGTERM)
        self._await_recovery(target, killed_at)
        return struck

    def _fail_endpoint(self, kind: str, seconds: float) -> bool:
        try:
            url = f"{self._world.url('scorer')}/fault/{kind}?{seconds}"
            return httpx.post(url, timeout=2 * scorer.STRIKES_WITHIN_S, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _pause(self, target: str, seconds: float) -> bool:
        process = self._world.children[target].process
        if process is None or process.poll() is not None:
            return False
        process.send_signal(signal.SIGSTOP)
        self._recovering.add(target)

        def resume() -> None:
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)  # harmless where it was killed
            self._recovering.discard(target)

        self._in_background(resume)
        return True

    def _await_recovery(self, target: str, killed_at: float) -> None:
        before = self._world.children[target].process

        def watch() -> None:
            while time.monotonic() - killed_at < RECOVERY_S:
                if self._world.children[target].process is not before and self._world.works(target):
                    took_s = time.monotonic() - killed_at
                    self.recovery_s[target] = max(self.recovery_s.get(target, 0.0), took_s)
                    self._await_progress()
                    break
                time.sleep(0.1)
            else:
                self.violations.append(f"{target} did not work again within {RECOVERY_S:g} s of its death")
            self._recovering.discard(target)

        self._in_background(watch)

    def _await_progress(self) -> None:
        """Leave a process that is back alone until something was done: one that is hit at once never does anything."""
        before, deadline = self._progress(), time.monotonic() + PROGRESS_S
        while self._progress() == before and time.monotonic() < deadline:
            time.sleep(0.1)

    def _in_background(self, work: object) -> None:
        thread = threading.Thread(target=work, daemon=True)  # pyright: ignore[reportArgumentType]
        thread.start()
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]

    def settle(self) -> None:
        """Wait until everything runs again."""
        for thread in self._threads:
            thread.join(RECOVERY_S)
        for clock in (self._world.clock, self._world.redis_clock):
            set_clock(clock, 0.0)
