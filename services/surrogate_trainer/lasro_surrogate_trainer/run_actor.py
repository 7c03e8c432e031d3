"""One run: its replay buffer, the surrogate being trained, the published one, and the threads that use them.

Coroutines, all on one event loop, order the work. Each run has three threads: one trains, one computes scores and
gradients, one reads groups from Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import BusyError, ConflictError, LasroError, NotFoundError
from lasro.models.backbone import check_note
from lasro.models.frozen import FrozenModel
from lasro.redis_store.sample_stream import SampleStream
from lasro_surrogate_trainer.journaled_training import JournaledTrainer, request_digest
from lasro_surrogate_trainer.notifier import Notifier
from lasro_surrogate_trainer.published_surrogate import PublishedSurrogate
from lasro_surrogate_trainer.request_bodies import GradientBody, LatentsBody
from lasro_surrogate_trainer.sample_feed import GroupBuffer, SampleFeed
from lasro_surrogate_trainer.store import RunStore

log = logging.getLogger("lasro.trainer")
T = TypeVar("T")


class RunActor:
    """A run of the trainer. It may be made on any thread; `start` and all coroutines belong to one event loop."""

    def __init__(self, name: str, config: SurrogateRun, frozen: FrozenModel, store: RunStore, redo_s: float) -> None:
        self.name, self.config, self.frozen = name, config, frozen
        self._store = store
        self._buffer = GroupBuffer(config, frozen.model.latent_shape)
        self._trainer = JournaledTrainer(config, frozen, self._buffer, store, redo_s)
        self._published = PublishedSurrogate(frozen, config.surrogate, store)
        self._running: dict[str, tuple[str, asyncio.Task[wire.AdaptReply]]] = {}
        self._tidying: asyncio.Task[None] | None = None
        self._closing = threading.Event()
        self._training_thread = ThreadPoolExecutor(1, f"train-{name}")
        self._serving_thread = ThreadPoolExecutor(1, f"serve-{name}")
        self._adapting = asyncio.Lock()
        self.adapt_steps, self.gradient_requests = 0, 0

    def start(self, stream: SampleStream) -> None:
        """Start reading groups; call it on the event loop."""
        self._stream, self._notifier = stream, Notifier()
        self._feed = SampleFeed(stream, self.name, self._buffer, self._notifier.notify)
        self._feed.start()

    # --- weights ---------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The newest published version."""
        return self._trainer.head.version

    async def upload(self, body: bytes) -> None:
        """Start from these weights, as a new version.

        Raises ConflictError once the run is trained, WireError for weights of another shape or backbone.
        """
        tensors, header = await asyncio.to_thread(wire.unpack_tensors, body)
        check_note(header, self.config.surrogate.backbone)
        async with self._adapting:
            await self._on(self._training_thread, self._trainer.upload, tensors, hashlib.sha256(body).hexdigest())
        self._notifier.notify()

    async def weights(self, version: int | None = None) -> tuple[int, bytes]:
        """A version and its safetensors, the newest for None; raises NotFoundError."""
        newest = self.version
        wanted = newest if version is None else version
        if wanted > newest:
            raise NotFoundError(f"version {wanted}: not published yet; the newest is {newest}")
        return wanted, await asyncio.to_thread(self._store.read, wanted)

    async def newer_than(self, version: int, wait_s: float) -> bool:
        """Wait up to `wait_s` for a version newer than this one; True where there is one."""
        await self._notifier.until(lambda: self.version > version or self._closing.is_set(), wait_s)
        return self.version > version

    async def lease(self, version: int) -> None:
        """Keep this version and all later ones until another call; raises NotFoundError for one not kept."""
        await asyncio.to_thread(self._store.lease, version)

    def versions(self) -> list[wire.VersionInfo]:
        """What is known of each version, oldest first."""
        kept = set(self._store.versions())
        newest_of = {commit.version: commit for commit in self._trainer.history}
        return [
            wire.VersionInfo(
                version=version,
                steps=commit.steps,
                kept=version in kept,
                policy_version=commit.policy_version,
                fresh_pair_accuracy=None if commit.reply is None else commit.reply.statistics.fresh_pair_accuracy,
                accuracy_by_kind={} if commit.reply is None else commit.reply.statistics.accuracy_by_kind,
                held_out_pair_accuracy=commit.measured.held_out_accuracy,
                reward_gap=commit.measured.reward_gap,
                drift=commit.drift,
            )
            for version, commit in newest_of.items()
        ]

    # --- training --------------------------------------------------------------------------------------------

    async def adapt(self, request: wire.AdaptRequest) -> wire.AdaptReply:
        """Wait for the named groups, train, publish. A repeated `request_id` gets the reply to the first request.

        It goes on when the caller hangs up. Raises ConflictError for an id of another request, TimeoutExceededError
        naming groups that did not arrive, WireError naming one that was refused.
        """
        if (reply := self._trainer.answered(request)) is not None:
            return reply
        name, digest = request.request_id, request_digest(request)
        if name not in self._running:
            self._running[name] = digest, asyncio.create_task(self._adapt(request))
            self._running[name][1].add_done_callback(partial(self._finished, name))
        running_digest, task = self._running[name]
        if running_digest != digest:
            raise ConflictError(f"request_id {name}: in use for other groups or steps; take a new one")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as error:
            # The server is stopping and drops its requests; the caller is to ask again.
            raise BusyError(f"run {self.name}: the trainer is being stopped; ask again once it is back") from error

    def _finished(self, request_id: str, task: asyncio.Task[wire.AdaptReply]) -> None:
        del self._running[request_id]
        if task.exception() is not None:
            log.warning("run %s: adapt %s: %s", self.name, request_id, task.exception())

    async def _adapt(self, request: wire.AdaptRequest) -> wire.AdaptReply:
        async with self._adapting:
            if self._tidying is not None:
                await self._tidying
            await self._groups_arrived(request)
            before = self._trainer.head.steps
            reply = await self._on(self._training_thread, self._trainer.adapt, request, self._closing.is_set)
            self.adapt_steps += self._trainer.head.steps - before
            self._feed.release()
            # After the reply: the caller does not wait for it, only the next adaptation does.
            self._tidying = asyncio.create_task(self._on(self._training_thread, self._tidy))
        self._notifier.notify()
        return reply

    async def _groups_arrived(self, request: wire.AdaptRequest) -> None:
        names = request.new_groups
        self._buffer.expect(names)
        await self._notifier.until(lambda: self._closing.is_set() or self._buffer.settled(names), request.timeout_s)
        self._buffer.expect(())
        if not self._closing.is_set():
            self._buffer.check(names, request.timeout_s)

    def _tidy(self, closing: bool = False) -> None:
        try:
            self._trainer.tidy(closing)
        except LasroError as error:
            log.warning("run %s: nothing is lost, but old files were not removed: %s", self.name, error)

    # --- serving ---------------------------------------------------------------------------------------------

    async def score(self, body: LatentsBody) -> wire.SurrogateScoreReply:
        """Scores of latents by the newest version; raises NonFiniteError."""
        version = self.version
        scores = await self._on(self._serving_thread, self._published.score, *body, version)
        return wire.SurrogateScoreReply(scores=scores, version=version)

    async def score_images(self, images_BHWC: np.ndarray, prompts: list[str]) -> wire.SurrogateScoreReply:
        """Scores of images uint8 [B, H, W, 3] by the newest version; raises NonFiniteError."""
        version = self.version
        scores = await self._on(self._serving_thread, self._published.score_images, images_BHWC, prompts, version)
        return wire.SurrogateScoreReply(scores=scores, version=version)

    async def gradient(self, body: GradientBody) -> tuple[int, np.ndarray, np.ndarray]:
        """Version, scores [B] float32, gradients [B, C, H, W]; raises NonFiniteError, NotFoundError."""
        version = self.version if body.version is None else body.version
        scores_B, gradient_BCHW = await self._on(self._serving_thread, self._published.gradient, *body[:4], version)
        self.gradient_requests += 1
        return version, scores_B, gradient_BCHW

    async def check(self) -> None:
        """Run one forward pass of the newest version; raises BusyError where the sample feed has died."""
        if not self._feed.is_alive():
            raise BusyError(f"run {self.name}: its sample feed has died; see the log, restart the trainer")
        await self._on(self._serving_thread, self._published.check, self.version)

    def status(self) -> wire.RunStatus:
        """The run's counters and newest measurements."""
        measured = self._trainer.head.measured
        return wire.RunStatus(
            run=self.name,
            version=self.version,
            steps=self._trainer.head.steps,
            replay_groups=self._buffer.replay.training_groups,
            held_out_groups=len(self._buffer.replay.held_out()),
            queue_lag=self._feed.lag,
            held_out_pair_accuracy=measured.held_out_accuracy,
            reward_gap=measured.reward_gap,
            trained="full" if self.config.surrogate.trunk == "full" else "adapter",
        )

    # --- ending ----------------------------------------------------------------------------------------------

    async def _on(self, thread: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        if self._closing.is_set():
            raise BusyError(f"run {self.name}: being closed; ask again once the trainer is back")
        return await asyncio.get_running_loop().run_in_executor(thread, partial(work, *arguments))

    async def close(self) -> None:
        """End the run's threads. A running adaptation ends at its next step and publishes nothing."""
        self._closing.set()
        self._notifier.notify()
        tidying = [] if self._tidying is None else [self._tidying]
        await asyncio.gather(*(task for _, task in self._running.values()), *tidying, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._training_thread, partial(self._tidy, closing=True))
        for stop in (self._feed.stop, self._training_thread.shutdown, self._serving_thread.shutdown):
            await asyncio.to_thread(stop)

    async def delete(self) -> None:
        """Close the run and remove its files and Redis keys."""
        await self.close()
        await asyncio.to_thread(self._stream.delete)
        await asyncio.to_thread(self._store.delete)
