"""The check: what entered the replay against what was sent, read from the trainer's disk and from Redis.

A sample is lost where it was scored, or its round was ended, and is neither in a checkpoint nor on its way there;
doubled where it entered the replay twice or was delivered twice; wrong where a number is not the true reward.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import Any

import redis

from lasro import wire
from lasro.errors import StorageError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect
from lasro.redis_store.sample_stream import SampleStream
from lasro_surrogate_trainer.journal import Journal
from tests.chaos.workload import MORTAL, REWARD, RUNS, Workload, rewards_of
from tests.chaos.world import World


class Ledger:
    """`collect` is to be called more often than files leave the trainer's disk: every second or so."""

    def __init__(self, world: World, workload: Workload) -> None:
        self._world, self._workload = world, workload
        self._journals = {run: Journal(world.data_dir / "runs" / run) for run in RUNS}
        self._next: dict[str, int] = dict.fromkeys(RUNS, 0)
        self.entered: dict[str, Counter[str]] = {run: Counter() for run in RUNS}
        self.samples = self.wrong = self.failed = self.mortal_failed = 0
        self.violations: list[str] = []

    @property
    def groups(self) -> int:
        """Different ones that entered a replay."""
        return sum(len(entered) for entered in self.entered.values())

    def collect(self) -> None:
        """Take in what was committed since the last time."""
        for run, journal in self._journals.items():
            with suppress(StorageError):  # being removed this moment: it was read before
                for number in journal.numbers("commits"):
                    if number >= self._next[run]:
                        self._take(run, journal, number)
                        self._next[run] = number + 1

    def _take(self, run: str, journal: Journal, number: int) -> None:
        path = self._world.data_dir / "runs" / run / "commits" / f"{number:08d}.json"
        commit = json.loads(path.read_bytes())
        samples = journal.groups(number) if commit["groups"] else []
        if sorted(sample.group_id for sample in samples) != sorted(commit["groups"]):
            self.violations.append(f"{run}: commit {number} names other groups than it kept")
        if number > self._next[run] and self._next[run]:
            self.violations.append(f"{run}: commits {self._next[run]} to {number - 1} were gone before they were read")
        for sample in samples:
            self._check(run, sample)

    def _check(self, run: str, sample: wire.ScoredGroup) -> None:
        group = self._workload.group(run, sample.round, sample.index)
        rewards = sample.rewards[REWARD]
        pairs = [pair for given in sample.rewards.values() for pair in zip(given, group.rewards, strict=True)]
        wrong = sum(reward not in (None, true) for reward, true in pairs)
        content = (sample.group_id, sample.prompt, sample.stages, sample.latents, list(sample.rewards))
        if content != (group.group_id, group.prompt, group.stages, group.latents, rewards_of(group)):
            wrong = len(group.stages)
        self.wrong += wrong
        if not self.entered[run][sample.group_id]:
            self.samples += len(group.stages)
            self.failed += sum(reward is None for reward in rewards) - group.rewards.count(None)
            mortal = sample.rewards.get(MORTAL, group.rewards)
            self.mortal_failed += sum(reward is None for reward in mortal) - group.rewards.count(None)
        self.entered[run][sample.group_id] += 1

    # --- at the end ------------------------------------------------------------------------------------------

    def verdict(self, finished: bool) -> dict[str, int]:
        """How many samples were lost, doubled, wrong; `finished` runs have to have all of theirs."""
        self.collect()
        lost, doubled = 0, 0
        with connect(self._world.redis.url) as client:
            for run in RUNS:
                scored = self._scored(client, run)
                expected = {name for name, _, _ in self._workload.ids()} if finished else scored
                lost += len((expected | scored) - self.entered[run].keys() - self._on_their_way(client, run))
                doubled += sum(count - 1 for count in self.entered[run].values())
                doubled += self._delivered(client, run) - len(scored)
        rounds = [self._round_violations(run) for run in RUNS]
        return {"lost": lost, "duplicated": doubled, "wrong": self.wrong + sum(wrong for wrong, _ in rounds)}

    def _scored(self, client: redis.Redis, run: str) -> set[str]:
        names = [name.decode() for name in _any(client.smembers(keys.groups(run)))]
        with client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hget(keys.group(run, name), "state")
            states = pipeline.execute()
        return {name for name, state in zip(names, states, strict=True) if state == b"scored"}

    def _on_their_way(self, client: redis.Redis, run: str) -> set[str]:
        stream = SampleStream(client, run)
        entries = _any(client.xrange(keys.samples(run)))
        return {stream._sample(fields).group_id for _, fields in entries}

    def _delivered(self, client: redis.Redis, run: str) -> int:
        """Entries that the stream ever had. A power cut takes them back together with what says they were scored."""
        key = keys.samples(run)
        return _any(client.xinfo_stream(key))["entries-added"] if client.exists(key) else 0

    def _round_violations(self, run: str) -> tuple[int, dict[int, Any]]:
        """Of what the client saw: numbers that were wrong. A round that is repeated must be answered as it was."""
        wrong, seen, newest = 0, {}, 0
        for line in self.lines(run):
            if "version" not in line:
                continue
            wrong += line["wrong"]
            answer = line["version"], line["weights"]
            if seen.setdefault(line["round"], answer) != answer:
                self.violations.append(f"{run}: round {line['round']} was answered differently the second time")
            if line["version"] < newest:
                self.violations.append(f"{run}: version {line['version']} came after version {newest}")
            newest = max(newest, line["version"])
        return wrong, seen

    def lines(self, run: str) -> list[dict[str, Any]]:
        """Of the client's log; one that it was killed in is left out."""
        path, lines = self._world.folder / f"{run}.log.jsonl", []
        for text in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError):
                lines.append(json.loads(text))
        return lines

    def left_over(self) -> list[str]:
        """What should not be there once all is done: waiting work, samples nobody acknowledged, dead letters."""
        with connect(self._world.redis.url) as client:
            streams = [keys.WORK, keys.DEAD_WORK]
            streams += [name for run in RUNS for name in (keys.samples(run), keys.dead_samples(run))]
            lengths = {name: _any(client.xlen(name)) for name in streams}
        return [f"{name} still has {length} entries" for name, length in lengths.items() if length]


def _any(reply: Any) -> Any:
    return reply
