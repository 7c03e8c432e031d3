"""One run: its replay, the surrogate being trained, the one being served, and the order in which things happen.

Coroutines decide what happens next; torch works on two threads of the run, one that trains and one that serves,
and a third takes samples from Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import BusyError, ConflictError
from lasro.redis_store.sample_stream import SampleStream
from lasro_surrogate_trainer.adaptation import Trainee, adapt
from lasro_surrogate_trainer.bodies import GradientBody, LatentsBody
from lasro_surrogate_trainer.feed import Intake, SampleFeed
from lasro_surrogate_trainer.models import FrozenModel
from lasro_surrogate_trainer.serving import ServedSurrogate
from lasro_surrogate_trainer.signals import Bell
from lasro_surrogate_trainer.store import RunStore

log = logging.getLogger("lasro.trainer")
KEPT_REPLIES = 256
T = TypeVar("T")


def request_digest(request: wire.AdaptRequest) -> str:
    """Tells requests apart that must not share an id; the timeout may differ between repeats."""
    return hashlib.sha256(request.model_dump_json(exclude={"timeout_s"}).encode()).hexdigest()


class Run:
    """A surrogate with its data. Made on a worker thread, then all coroutines run on one event loop."""

    def __init__(self, name: str, config: SurrogateRun, frozen: FrozenModel, store: RunStore) -> None:
        self.name, self.config, self.frozen = name, config, frozen
        self._store = store
        self._intake = Intake(config, frozen.model.latent_shape)
        self._trainee = Trainee(frozen, config.surrogate, config.reward_objective)
        self._served = ServedSurrogate(frozen, config.surrogate, store)
        self._replies: OrderedDict[str, tuple[str, wire.AdaptReply]] = OrderedDict()
        self._running: dict[str, tuple[str, asyncio.Task[wire.AdaptReply]]] = {}
        self._unreleased: set[str] = set()
        self._closing = threading.Event()
        self._training_thread = ThreadPoolExecutor(1, f"train-{name}")
        self._serving_thread = ThreadPoolExecutor(1, f"serve-{name}")
        self._adapting = asyncio.Lock()
        self.adapt_steps, self.gradient_requests = 0, 0
        self._restore()

    def start(self, stream: SampleStream) -> None:
        """Begin to take samples; on the event loop."""
        self._stream, self._bell = stream, Bell()
        self._feed = SampleFeed(stream, self.name, self._intake, self._bell.ring)
        self._feed.start()

    # --- weights ---------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Take up the newest version on disk, or publish the untrained surrogate as version 0."""
        versions = self._store.versions()
        if not versions:
            self._publish(0, {})
            return
        for version in versions:
            header = self._store.header(version)
            if "request_id" in header:
                reply = wire.from_json(wire.AdaptReply, header["reply"])
                self._replies[header["request_id"]] = header["request"], reply
        tensors, header = wire.unpack_tensors(self._store.read(versions[-1]))
        self._trainee.load(tensors, int(header["steps"]))
        self.version, self.steps = versions[-1], self._trainee.steps

    def _publish(self, version: int, metadata: dict[str, str]) -> None:
        header = metadata | {"version": str(version), "steps": str(self._trainee.steps)}
        self._store.publish(version, self._trainee.state(), header)
        self.version, self.steps = version, self._trainee.steps

    @contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Whatever goes wrong inside, weights that were never published must not be trained on further."""
        try:
            yield
        except Exception:
            self._restore()
            raise

    async def upload(self, body: bytes) -> None:
        """Start from these weights: a new version. Raises ConflictError once trained, WireError for a misfit."""
        tensors, _ = await asyncio.to_thread(wire.unpack_tensors, body)
        async with self._adapting:
            await self._on(self._training_thread, self._take_over, tensors, hashlib.sha256(body).hexdigest())
        self._bell.ring()

    def _take_over(self, tensors: dict[str, np.ndarray], digest: str) -> None:
        if self._trainee.steps:
            raise ConflictError(
                f"run {self.name}: already trained for {self._trainee.steps} steps, expected an untrained one; "
                "delete the run to start over"
            )
        if self._store.header(self.version).get("uploaded") != digest:
            with self._whole_or_not_at_all():
                self._trainee.load(tensors, 0)
                self._publish(self.version + 1, {"uploaded": digest})

    async def weights(self, version: int | None = None) -> tuple[int, bytes]:
        """A version and its safetensors, the newest where none is named; raises NotFoundError."""
        wanted = self.version if version is None else version
        return wanted, await asyncio.to_thread(self._store.read, wanted)

    async def newer_than(self, version: int, wait_s: float) -> bool:
        """Whether a version after this one is published within `wait_s`."""
        await self._bell.until(lambda: self.version > version or self._closing.is_set(), wait_s)
        return self.version > version

    # --- training --------------------------------------------------------------------------------------------

    async def adapt(self, request: wire.AdaptRequest) -> wire.AdaptReply:
        """Wait for the named groups, train, publish. A repeated `request_id` gets the first one's reply.

        It goes on when the caller hangs up. Raises ConflictError for an id used for something else,
        TimeoutExceededError naming groups that did not arrive, WireError naming one that was refused.
        """
        digest = request_digest(request)
        name = request.request_id
        known = (self._replies.get(name) or self._running.get(name) or (digest,))[0]
        if known != digest:
            raise ConflictError(f"request_id {name}: used before for other groups or steps; take a new one")
        if name in self._replies:
            return self._replies[name][1]
        if name not in self._running:
            self._running[name] = digest, asyncio.create_task(self._adapt(request))
            self._running[name][1].add_done_callback(partial(self._finished, name))
        try:
            return await asyncio.shield(self._running[name][1])
        except asyncio.CancelledError as error:
            # The server is going down and drops its requests: the caller is to ask again.
            raise BusyError(f"run {self.name}: the trainer is being stopped; ask again once it is back") from error

    def _finished(self, request_id: str, task: asyncio.Task[wire.AdaptReply]) -> None:
        del self._running[request_id]
        if task.exception() is not None:
            log.warning("run %s: adapt %s: %s", self.name, request_id, task.exception())

    async def _adapt(self, request: wire.AdaptRequest) -> wire.AdaptReply:
        async with self._adapting:
            await self._groups_arrived(request)
            reply = await self._on(self._training_thread, self._train, request)
            self._feed.release(self._unreleased)
            self._unreleased.clear()
        self._replies[request.request_id] = request_digest(request), reply
        while len(self._replies) > KEPT_REPLIES:
            self._replies.popitem(last=False)
        self._bell.ring()
        return reply

    async def _groups_arrived(self, request: wire.AdaptRequest) -> None:
        names = request.new_groups
        self._unreleased.update(self._intake.replay.admit(names))
        await self._bell.until(lambda: self._closing.is_set() or self._intake.settled(names), request.timeout_s)
        if not self._closing.is_set():
            self._intake.check(names, request.timeout_s)

    def _train(self, request: wire.AdaptRequest) -> wire.AdaptReply:
        before = self._trainee.steps
        with self._whole_or_not_at_all():
            statistics = adapt(self._trainee, self._intake.replay, request, self._closing.is_set)
            steps = self._trainee.steps - before
            reply = wire.AdaptReply(version=self.version + (steps > 0), statistics=statistics)
            if steps:
                header = {"request_id": request.request_id, "request": request_digest(request)}
                self._publish(reply.version, header | {"reply": reply.model_dump_json()})
        self.adapt_steps += steps
        return reply

    # --- serving ---------------------------------------------------------------------------------------------

    async def score(self, body: LatentsBody) -> wire.SurrogateScoreReply:
        version = self.version
        scores = await self._on(self._serving_thread, self._served.score, *body, version)
        return wire.SurrogateScoreReply(scores=scores, version=version)

    async def score_images(self, images_BHWC: np.ndarray, prompts: list[str]) -> wire.SurrogateScoreReply:
        version = self.version
        scores = await self._on(self._serving_thread, self._served.score_images, images_BHWC, prompts, version)
        return wire.SurrogateScoreReply(scores=scores, version=version)

    async def gradient(self, body: GradientBody) -> tuple[int, np.ndarray, np.ndarray]:
        """Version, scores [B], gradient [B, C, H, W]."""
        version = self.version if body.version is None else body.version
        scores_B, gradient_BCHW = await self._on(self._serving_thread, self._served.gradient, *body[:4], version)
        self.gradient_requests += 1
        return version, scores_B, gradient_BCHW

    async def check(self) -> None:
        """A tiny forward pass of the published version; raises BusyError when no samples are taken in."""
        if not self._feed.is_alive():
            raise BusyError(f"run {self.name}: its sample feed has died; see the log, restart the trainer")
        await self._on(self._serving_thread, self._served.check, self.version)

    def status(self) -> wire.RunStatus:
        return wire.RunStatus(
            run=self.name,
            version=self.version,
            steps=self.steps,
            replay_groups=self._intake.replay.training_groups,
            held_out_groups=len(self._intake.replay.held_out()),
            queue_lag=self._feed.lag,
            held_out_pair_accuracy=self._trainee.held_out_accuracy,
            reward_gap=self._trainee.reward_gap,
            trained="full" if self.config.surrogate.trunk == "full" else "adapter",
        )

    # --- ending ----------------------------------------------------------------------------------------------

    async def _on(self, thread: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        if self._closing.is_set():
            raise BusyError(f"run {self.name}: being closed; ask again once the trainer is back")
        return await asyncio.get_running_loop().run_in_executor(thread, partial(work, *arguments))

    async def close(self) -> None:
        """End the run's threads; an adaptation under way ends at its next step, unpublished."""
        self._closing.set()
        self._bell.ring()
        await asyncio.gather(*(task for _, task in self._running.values()), return_exceptions=True)
        for stop in (self._feed.stop, self._training_thread.shutdown, self._serving_thread.shutdown):
            await asyncio.to_thread(stop)

    async def delete(self) -> None:
        """Close, and remove the run's files and Redis keys."""
        await self.close()
        await asyncio.to_thread(self._stream.delete)
        await asyncio.to_thread(self._store.delete)
