"""Has groups scored and hands them to the surrogate trainer. Imports no torch."""

from __future__ import annotations

import hashlib
import time

from lasro.errors import TimeoutExceededError
from lasro.training.distributed import DistributedContext
from lasro.wire import AdaptReply, AdaptRequest, GroupStatus, GroupSubmission
from lasro_client.services.connect import Services

PATIENCE_S = 20.0
"""How long the trainer waits for groups before it is seen to that they are still on their way to it."""


class FeedbackClient:
    """Of one run. `timeout_s` bounds each wait: for scores, and for groups to reach the trainer.

    Ids are made of what they stand for, so a round that is repeated after a crash costs no reward call twice and is
    answered as it was; where sampling is not exact, its groups are new ones.
    """

    def __init__(
        self, connected: Services, run: str, timeout_s: float, peers: DistributedContext | None = None
    ) -> None:
        self.services, self.run, self.timeout_s = connected, run, timeout_s
        self.peers = peers or DistributedContext()
        self._posted: dict[str, GroupSubmission] = {}

    def post(self, posts: list[GroupSubmission]) -> list[GroupStatus]:
        """Post the groups and wait for their scores, in order. Raises BudgetError when the budget is spent."""
        scored = self.services.rewards.wait_scored(self.run, posts, self.timeout_s)
        self._posted |= {post.group_id: post for post in posts}
        return [scored[post.group_id] for post in posts]

    def adapt(
        self,
        scored: list[GroupStatus],
        round: int,
        steps: int,
        part: int = 0,
        drift: float | None = None,
        rate: float = 1.0,
        settle: bool = False,
    ) -> AdaptReply:
        """Train the surrogate for `steps` steps once it has these groups, those of all processes; safe to repeat.

        `drift` of the generator that made them is kept with the version, for whoever asks the trainer about it. `rate`
        and `settle` are those of `AdaptRequest`.
        A Redis that lost power may have forgotten groups that were scored: they are posted again.
        """
        names = [status.group_id for status in scored]
        digest = hashlib.sha256(" ".join([*names, str(steps)]).encode()).hexdigest()[:16]
        deadline = time.monotonic() + self.timeout_s

        def asked() -> AdaptReply | None:
            left_s = max(0.1, deadline - time.monotonic())
            request = AdaptRequest(
                request_id=f"r{round:06d}-{part}-{digest}",
                new_groups=names,
                steps=steps,
                rate=rate,
                settle=settle,
                timeout_s=min(PATIENCE_S, left_s),
                drift=drift,
            )
            try:
                return self.services.surrogates.adapt(self.run, request)
            except TimeoutExceededError:
                if deadline <= time.monotonic():
                    raise
                return None

        while (reply := self.peers.on_main_and_broadcast(asked, AdaptReply | None)) is None:
            self.peers.all_gather(lambda: self._post_again(names, deadline - time.monotonic()), None)
        for name in names:  # the next round's may have been posted meanwhile
            self._posted.pop(name, None)
        return reply

    def _post_again(self, names: list[str], timeout_s: float) -> None:
        posts = [self._posted[name] for name in names if name in self._posted]
        self.services.rewards.wait_scored(self.run, posts, max(timeout_s, 0.1))

    def lease(self, version: int) -> None:
        """Have the trainer keep this version of the surrogate and all later ones: from it rounds may be repeated."""
        if self.peers.is_main:
            self.services.surrogates.lease(self.run, version)
