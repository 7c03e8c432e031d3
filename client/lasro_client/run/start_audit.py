"""The audit of a run that begins from nothing, after its first round: is there anything to learn, for how many calls?

It looks at rewards that the run needs anyway: those of the base's evaluation and of the first round's groups. What it
asks for itself is one group's rewards a second time, past the cache, so as to tell signal from noise; these calls are
no group's, so that no budget counts them. What it found is kept as audit.json.

Shape legend: N samples of a group, M of several groups or of an evaluation. NaN stands for what failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lasro.config import RunSettings
from lasro.files import write_json
from lasro.functional.reward_totals import Values, totals
from lasro.training.distributed import DistributedContext
from lasro.training.prompts import Prompt
from lasro.wire import GroupStatus, GroupSubmission, RewardInfo, ScoredItem, scores_of
from lasro_client.evaluation.result import Evaluation
from lasro_client.evaluation.reward_spread import best_pair_accuracy
from lasro_client.evaluation.score_prompts import LARGEST_BATCH, score_images
from lasro_client.run.cost import Speed, least_and_most_rounds, least_train_cost, train_cost
from lasro_client.run.observer import Observer
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.start_findings import AUDIT_FILE, FirstGroup, StartFacts, gather, notes, read_audit, why_futile
from lasro_client.services.retry import with_retry
from lasro_client.services.reward_client import RewardClient


class StartAudit:
    """Of one run. The main process makes it, of the groups that it posted itself, and all hear what it said."""

    def __init__(
        self, config: RunSettings, folder: Path, client: RewardClient, observer: Observer, peers: DistributedContext
    ) -> None:
        self._config, self._folder, self._client = config, folder, client
        self._names = config.reward_objective.required_rewards or list(config.weights)
        self._observer, self._peers = observer, peers
        self._groups: list[tuple[GroupSubmission, GroupStatus]] = []

    def see(self, posts: Sequence[GroupSubmission], scored: Sequence[GroupStatus]) -> None:
        """Take in the groups of the first round; those of later ones are let pass."""
        if all(post.round == 0 for post in posts):
            self._groups = list(zip(posts, scored, strict=True))

    def after_first_round(self, record: RoundRecord, before: Evaluation) -> str | None:
        """Say what the audit found. Why the run is to end with this round; None to go on."""
        return self._peers.on_main_and_broadcast(lambda: self._audit(record, before), str | None)

    def _audit(self, record: RoundRecord, before: Evaluation) -> str | None:
        ids = [post.group_id for post, _ in self._groups]
        found = read_audit(self._folder)
        if found is None or found["groups"] != ids:  # else a crash has the first round done again
            found = dict[str, Any]({**self._make(record, before), "groups": ids})
            write_json(self._folder / AUDIT_FILE, found)
            for note in found["notes"]:
                self._observer.note(f"audit: {note}")
            self._observer.folder_updated()
        self._groups = []
        return found["ends"]

    def _make(self, record: RoundRecord, before: Evaluation) -> dict[str, Any]:
        config, names = self._config, self._names
        infos = {name: self._client.reward(name) for name in config.weights}
        total_GN = [self._totals(_column(status.items or []), record) for _, status in self._groups]
        again_N, repeated = np.empty(0), max(range(len(total_GN)), key=lambda index: _variation(total_GN[index]))
        if _variation(total_GN[repeated]) > 0:
            again_N = self._score_again(self._groups[repeated][0], record)
        groups = [
            _first_group(post, total_N, again_N if index == repeated else np.empty(0))
            for index, ((post, _), total_N) in enumerate(zip(self._groups, total_GN, strict=True))
        ]
        bound = _bound(config, infos)
        evaluated_M = self._totals(lambda name: _evaluated(before, name), record)
        facts = gather(groups, evaluated_M, record.surrogate, config.surrogate.rank_within_num_steps, bound)
        calls = _calls(config, infos)
        return _as_json(facts) | {
            "notes": notes(
                facts, calls["least"], calls["most"], config.budget.max_reward_calls, names[0], infos[names[0]].repeats
            ),
            # What a guard vetoes is below all totals, and may rise.
            "ends": None if config.reward_objective.floors else why_futile(facts, _name(names), bound is not None),
            "calls": calls | {"of_the_audit": len(again_N) * sum(infos[name].repeats for name in names)},
        }

    def _totals(self, column: Callable[[str], Sequence[float | None] | Values], record: RoundRecord) -> Values:
        """Of the samples whose rewards by name are in `column`."""
        rewards = {name: np.array(column(name), dtype=float) for name in self._names}
        return totals(rewards, self._config.reward_objective, record.surrogate.scales).total_N

    def _score_again(self, post: GroupSubmission, record: RoundRecord) -> Values:
        """Totals of the group's first samples, as many as go into a request."""
        images = post.images[:LARGEST_BATCH]
        prompts = [Prompt(post.prompt, post.metadata)] * len(images)
        deadline = time.monotonic() + self._config.services.timeout_s
        items = with_retry(lambda: score_images(self._client, prompts, images, self._names, fresh=True), deadline)
        return self._totals(_column(items), record)


def _column(items: Sequence[ScoredItem]) -> Callable[[str], list[float | None]]:
    return lambda name: scores_of(items, name)


def _calls(config: RunSettings, infos: Mapping[str, RewardInfo]) -> dict[str, int]:
    """What the run may ask of all its rewards together."""
    speed = Speed(1, 1, repeats=sum(info.repeats for info in infos.values()))
    return {
        "least_rounds": sum(least_and_most_rounds(config.train)[0]),
        "least": least_train_cost(config.train, speed).calls,
        "most": train_cost(config.train, speed).calls,
    }


def _name(rewards: Sequence[str]) -> str:
    return f"reward {rewards[0]}" if len(rewards) == 1 else f"the total of {', '.join(rewards)}"


def _first_group(post: GroupSubmission, total_N: Values, again_N: Values) -> FirstGroup:
    missing = np.full(len(total_N) - len(again_N), np.nan)
    is_reference = post.reference or [False] * len(total_N)
    return FirstGroup(total_N, np.array(post.stages), ~np.array(is_reference), np.concatenate([again_N, missing]))


def _variation(total_N: Values) -> float:
    known_N = total_N[np.isfinite(total_N)]
    return float(np.ptp(known_N)) if len(known_N) else 0.0


def _evaluated(before: Evaluation, name: str) -> Values:
    """The images of each number of steps, one after the other."""
    return np.concatenate([np.array(rewards, dtype=float) for rewards in before.rewards[name].values()])


def _bound(config: RunSettings, infos: Mapping[str, RewardInfo]) -> float | None:
    """The highest total that there can be; None where it is not known, as with several rewards."""
    objective = config.reward_objective
    (name, *others) = objective.required_rewards or [""]
    limits = None if others or not name else infos[name].range
    if limits is None or name in objective.normalised or objective.combine == "product":
        return None
    return max(config.weights[name] * limit for limit in limits)


def _as_json(facts: StartFacts) -> dict[str, Any]:
    share = facts.within.signal_share
    return asdict(facts) | {
        "within": {"image_variance": facts.within.images, "repeat_variance": facts.within.repeats},
        "signal_share": share,
        "best_pair_accuracy": None if share is None else best_pair_accuracy(share),
    }
