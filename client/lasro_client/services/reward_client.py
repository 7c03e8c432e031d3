"""The reward API from Python.

with RewardClient("http://127.0.0.1:8000") as api:
    api.register(RewardSpec(name="aesthetic", url="http://127.0.0.1:9000/", protocol="native"))
    reply = api.score(ScoreRequest(prompts=["a cat"], images=[png], rewards=["aesthetic"]))
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import quote

import httpx

from lasro.errors import BusyError, NotFoundError, RewardError, ServiceError, TimeoutExceededError, UnreachableError
from lasro.wire import (
    MSGPACK_TYPE,
    GroupAccepted,
    GroupState,
    GroupStatus,
    GroupSubmission,
    Message,
    ProbeReply,
    RewardInfo,
    RewardList,
    RewardSpec,
    ScoreReply,
    ScoreRequest,
    to_msgpack,
)
from lasro_client.services.http import ServiceClient, message, send
from lasro_client.services.retry import with_retry

log = logging.getLogger("lasro")
M = TypeVar("M", bound=Message)
LONGEST_POLL_S = 20.0
"""Longest wait for a group's scores within one request."""


class RewardClient(ServiceClient):
    """Every method may raise UnreachableError, TimeoutExceededError, AuthError, StorageError or ServiceError.

    `own_rewards` are registered by whoever made this client: where the service has forgotten them, since its Redis lost
    its data, they are registered again.
    """

    def __init__(
        self, url: str, api_key: str | None = None, timeout_s: float = 60.0, own_rewards: Sequence[RewardSpec] = ()
    ) -> None:
        super().__init__(url, api_key, timeout_s)
        self._timeout_s = timeout_s
        self._own_rewards = {spec.name: spec for spec in own_rewards}
        self._seen: set[str] = set()

    def ready(self) -> bool:
        """Whether the service answers and is ready for work."""
        try:
            send(self._http, "GET", "/health/ready")
        except (UnreachableError, ServiceError):
            return False
        return True

    def register(self, spec: RewardSpec, replace: bool = False) -> RewardInfo:
        """Register a reward; raises ConflictError for a name in use unless `replace`."""
        if replace:
            return self._post("PUT", _reward_path(spec.name), spec, RewardInfo)
        return self._post("POST", "/v1/rewards", spec, RewardInfo)

    def rewards(self) -> list[RewardInfo]:
        """All registered rewards, by name."""
        return message(send(self._http, "GET", "/v1/rewards"), RewardList).rewards

    def reward(self, name: str) -> RewardInfo:
        """One registered reward; raises NotFoundError."""
        info = message(send(self._http, "GET", _reward_path(name)), RewardInfo)
        self._seen.add(name)
        return info

    def remove(self, name: str) -> None:
        """Forget a reward; raises NotFoundError."""
        send(self._http, "DELETE", _reward_path(name))

    def probe(self, name: str) -> ProbeReply:
        """Have the reward called once with a known image; raises NotFoundError."""
        return message(send(self._http, "POST", f"{_reward_path(name)}/probe"), ProbeReply)

    def score(self, request: ScoreRequest) -> ScoreReply:
        """Score images now; items come in the order of the request. Raises NotFoundError, WireError.

        A service that is busy is asked again for `timeout_s`, then BusyError is raised.
        """
        deadline = time.monotonic() + self._timeout_s

        def ask() -> ScoreReply:
            return with_retry(lambda: self._post("POST", "/v1/score", request, ScoreReply), deadline, (BusyError,))

        return self._with_rewards(request.rewards, ask)

    def submit(self, run: str, submission: GroupSubmission) -> GroupAccepted:
        """Queue a group for scoring; submitting it again changes nothing.

        Raises ConflictError when its id is taken by other content, BudgetError when the run's limit is reached.
        """
        path = f"/v1/runs/{quote(run, safe='')}/groups"
        return self._with_rewards(submission.rewards, lambda: self._post("POST", path, submission, GroupAccepted))

    def _with_rewards(self, names: Sequence[str], ask: Callable[[], M]) -> M:
        """The reply of a call that needs these rewards. Own ones that are not registered any more are so again."""
        try:
            return ask()
        except NotFoundError as error:
            lost = [self._own_rewards[name] for name in names if name in self._own_rewards]
            if not lost:
                raise self._explained(names, error) from error
            log.warning("%s; this run registers its rewards again", error)
        for spec in lost:
            self.register(spec, replace=True)
        return ask()

    def _explained(self, names: Sequence[str], error: NotFoundError) -> NotFoundError:
        if self._seen.isdisjoint(names):
            return error
        return NotFoundError(
            f"{error}; it was registered when this began, so Redis lost it or somebody removed it: register it with "
            "`lasro rewards add` and start again"
        )

    def group(self, run: str, group_id: str, wait_s: float = 0.0) -> GroupStatus:
        """State of a group, waiting up to `wait_s` (at most 60) for its scores; raises NotFoundError."""
        path = f"/v1/runs/{quote(run, safe='')}/groups/{quote(group_id, safe='')}"
        timeout = httpx.Timeout(self._timeout_s + wait_s, connect=min(self._timeout_s, 10.0))
        return message(send(self._http, "GET", path, params={"wait": wait_s}, timeout=timeout), GroupStatus)

    def wait_scored(self, run: str, submissions: Sequence[GroupSubmission], timeout_s: float) -> dict[str, GroupStatus]:
        """Wait until all these groups are scored; statuses by group id.

        Groups that the service does not know (any more) are submitted, and a service that restarts is waited for.
        Raises TimeoutExceededError after `timeout_s`, RewardError for a group that was dead-lettered,
        ConflictError and BudgetError as `submit`.
        """
        deadline = time.monotonic() + timeout_s
        for submission in submissions:
            with_retry(lambda s=submission: self._known(run, s), deadline)
        return {s.group_id: self._scored(run, s, deadline) for s in submissions}

    def _known(self, run: str, submission: GroupSubmission) -> None:
        try:
            self.group(run, submission.group_id)
        except NotFoundError:
            self.submit(run, submission)

    def _scored(self, run: str, submission: GroupSubmission, deadline: float) -> GroupStatus:
        while (left_s := deadline - time.monotonic()) > 0:
            wait_s = min(LONGEST_POLL_S, left_s)
            try:
                status = with_retry(lambda w=wait_s: self.group(run, submission.group_id, w), deadline)
            except NotFoundError:
                with_retry(lambda: self.submit(run, submission), deadline)
                continue
            if status.state is GroupState.SCORED:
                return status
            if status.state is GroupState.DEAD:
                raise RewardError(
                    f"group {submission.group_id} of run {run} is dead-lettered ({status.error}); "
                    "see `lasro queue ls`, `retry` and `drop`"
                )
        raise TimeoutExceededError(
            f"group {submission.group_id} of run {run} was not scored in time; is the reward slow or its queue full?"
        )

    def _post(self, method: str, path: str, body: Message, kind: type[M]) -> M:
        headers = {"Content-Type": MSGPACK_TYPE, "Accept": MSGPACK_TYPE}
        return message(send(self._http, method, path, content=to_msgpack(body), headers=headers), kind)


def _reward_path(name: str) -> str:
    return f"/v1/rewards/{quote(name, safe='')}"
