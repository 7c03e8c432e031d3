"""`python -m tests.chaos.child tests.chaos.producer FOLDER RUN REWARD_API TRAINER`: a run as its client makes it.

Posts a round's groups, waits for their scores, has the trainer adapt, fetches the weights, writes a checkpoint; killed
at any point, it goes on from there. A call that fails for good ends `lasro train` with a message, and its user starts
it again: here that is the next attempt.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from lasro.config import ModelSettings, SurrogateRun, SurrogateSettings
from lasro.errors import BusyError, LasroError, NotFoundError, StorageError, UnreachableError
from lasro.files import write_atomically, write_json
from lasro.service.child_process import die_with_parent
from lasro.wire import GroupAccepted, GroupStatus, GroupSubmission
from lasro_client.services import feedback as feedback
from lasro_client.services.connect import Services
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.reward_client import RewardClient
from lasro_client.services.surrogate_client import SurrogateClient
from tests.chaos.workload import ENOUGH, REWARD, Group, Workload, submission

MAY_PASS = (UnreachableError, StorageError, BusyError, NotFoundError)
TIMEOUT_S, CALL_TIMEOUT_S, PAUSE_S = 60.0, 10.0, 0.3
PATIENCES = 12
"""That groups are waited for in one attempt."""
MOST_HUNGRY = 3
"""Attempts at one round that end for want of groups: they will not come."""
LEASE_EVERY = 5


class CountingClient(RewardClient):
    """Counts the groups that it had to submit again because they were lost after they had been accepted."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout_s=CALL_TIMEOUT_S)
        self._accepted: set[str] = set()
        self.reposted = 0

    def submit(self, run: str, submission: GroupSubmission) -> GroupAccepted:
        accepted = super().submit(run, submission)
        self.reposted += submission.group_id in self._accepted
        self._accepted.add(submission.group_id)
        return accepted


def settings(model: Path) -> SurrogateRun:
    """A surrogate as small as can be, and a replay that groups leave."""
    surrogate = SurrogateSettings(
        trunk="adapter", adapter_rank=1, head_channels=8, groups_per_step=2, buffer_groups=2000, recent_groups=100,
        held_out_share=0.02, device="cpu",
    )  # fmt: skip
    return SurrogateRun(model=ModelSettings(path=str(model)), surrogate=surrogate, weights={REWARD: 1.0})


class Producer:
    """One run; what it has done is in `FOLDER/RUN.json`, what it saw in `FOLDER/RUN.log.jsonl`."""

    def __init__(self, folder: Path, run: str, reward_api: str, trainer: str, timeout_s: float) -> None:
        self.folder, self.run = folder, run
        self.workload = Workload.read(folder)
        self.rewards = CountingClient(reward_api)
        self.surrogates = SurrogateClient(trainer, timeout_s=TIMEOUT_S)
        self.feedback = FeedbackClient(Services(self.rewards, self.surrogates), run, timeout_s)
        self.checkpoint_path = folder / f"{run}.json"

    def next_round(self) -> int:
        return json.loads(self.checkpoint_path.read_bytes())["round"] if self.checkpoint_path.exists() else 0

    def log(self, **line: Any) -> None:
        with (self.folder / f"{self.run}.log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def open(self) -> None:
        self.surrogates.create(self.run, settings(self.folder / "model"))

    def round(self, round: int) -> None:
        while round == self.workload.rounds - 1 and not (self.folder / ENOUGH).exists():
            time.sleep(PAUSE_S)
        groups = [self.workload.group(self.run, round, index) for index in range(self.workload.per_round)]
        scored = self.feedback.post([submission(group) for group in groups])
        reply = self.feedback.adapt(scored, round, 1)
        weights = self.surrogates.weights_of(self.run, reply.version)
        self.log(
            round=round,
            version=reply.version,
            weights=hashlib.sha256(weights).hexdigest(),
            wrong=sum(wrong_scores(*pair) for pair in zip(groups, scored, strict=True)),
            reposted=self.rewards.reposted,
        )
        self.rewards.reposted = 0
        write_json(self.checkpoint_path, {"round": round + 1})
        if round % LEASE_EVERY == 0:
            self.feedback.lease(reply.version)

    def go_on(self) -> str:
        """To the end, or until nothing helps; says which."""
        hungry: Counter[int] = Counter()
        while self.next_round() < self.workload.rounds:
            at = -1
            try:
                self.open()
                while (at := self.next_round()) < self.workload.rounds:
                    self.round(at)
            except MAY_PASS as error:
                self.log(trouble=f"{type(error).__name__}: {error}", round=at)
                hungry[at] += "groups not here" in str(error)
                if hungry[at] >= MOST_HUNGRY:
                    return f"round {at}: {error}"
                time.sleep(PAUSE_S)
            except LasroError as error:
                return f"round {at}: {type(error).__name__}: {error}"
        return "done"


def wrong_scores(group: Group, status: GroupStatus) -> int:
    """Numbers that the client was given and that are not the true reward."""
    given = [item.scores[REWARD].score for item in status.items or []]
    return sum(score not in (None, true) for score, true in zip(given, group.rewards, strict=True))


def main(folder: Path, run: str, reward_api: str, trainer: str, patience_s: float) -> None:
    die_with_parent()
    feedback.PATIENCE_S = patience_s
    producer = Producer(folder, run, reward_api, trainer, PATIENCES * patience_s)
    write_atomically(folder / f"{run}.pid", str(os.getpid()).encode())
    write_atomically(folder / f"{run}.end", producer.go_on().encode())
    while True:  # what ends is started again, and there is nothing left to do
        time.sleep(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5]))
