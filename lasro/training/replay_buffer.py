"""The replay buffer: groups ordered by (round, index), never by arrival, so that batches can be reproduced.

A group becomes active, that is trained on, when an adapt request names it, not when it arrives. So batches do not
depend on when the stream delivers it.

Shape legend: N samples of a group, CHW one latent.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lasro import wire
from lasro.errors import NonFiniteError, WireError
from lasro.functional.reward_totals import RewardObjective, Scale, Values, check_product, group_totals, scale_of
from lasro.reward_function import RejectedItem

if TYPE_CHECKING:  # what keeps groups needs no torch, what samples them does
    from lasro.training.sampling import Group

HELD_OUT_GROUPS = 30


class Origins(NamedTuple):
    """What made each sample of a group, in addition to its number of denoising steps."""

    seeds_N: np.ndarray
    """Which x_tau0 of the group, int64."""
    draws_N: np.ndarray
    """Which eps of those given that x_tau0, int64; 0 for one-step samples."""
    reference_N: np.ndarray
    """Whether the other policy drew it, bool."""


def origins_of(
    seeds: Sequence[int] | None, draws: Sequence[int] | None, reference: Sequence[bool] | None
) -> Origins | None:
    """The same as arrays; None where one of them is unknown."""
    if seeds is None or draws is None or reference is None:
        return None
    return Origins(np.array(seeds, np.int64), np.array(draws, np.int64), np.array(reference, bool))


@dataclass(frozen=True, eq=False)
class ReplayGroup:
    """One prompt's scored samples, as the replay buffer keeps them.

    `num_steps_N` int64 is the number of denoising steps of each sample, 1 to 8; `origins` says the rest of what made
    it, None where that is unknown. `rewards` has the values of each reward
    by name, [N] float64, NaN where one failed. `latents_NCHW` is float16. Totals are computed when the group is used
    (`ranking.py`).
    """

    group_id: str
    round: int
    index: int
    prompt: str
    num_steps_N: np.ndarray
    rewards: Mapping[str, np.ndarray]
    latents_NCHW: np.ndarray
    policy_version: int = 0
    """Updates of the generator before it made this group."""
    origins: Origins | None = None

    @property
    def order(self) -> tuple[int, int, str]:
        """Where the group stands in the replay buffer."""
        return self.round, self.index, self.group_id

    @classmethod
    def from_samples(
        cls,
        group: Group,
        rewards: Mapping[str, Sequence[float | RejectedItem]],
        round: int,
        index: int,
        policy_version: int = 0,
    ) -> ReplayGroup:
        """The samples of `sample_groups` with their rewards by name, one per sample; NaN or RejectedItem: it failed.

        `round` and `index` must be those of no other group. Raises WireError for a wrong number of rewards,
        NonFiniteError for latents beyond float16.
        """
        values = {name: [_known(reward) for reward in column] for name, column in rewards.items()}
        return cls(
            group_id=f"{round}-{index}",
            round=round,
            index=index,
            prompt=group.prompt.text,
            num_steps_N=np.array(group.stages, dtype=np.int64),
            rewards=raw_rewards(values, values, len(group.stages)),
            latents_NCHW=_as_float16(group.latents_BCHW.numpy()),
            policy_version=policy_version,
            origins=origins_of(group.seeds, group.draws, group.is_reference),
        )


def _known(reward: float | RejectedItem) -> float | None:
    return None if isinstance(reward, RejectedItem) else float(reward)


def _as_float16(latents: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        halved = latents.astype(np.float16)
    if not np.isfinite(halved).all():
        raise NonFiniteError("latents: got values over 65504, expected what float16 can hold")
    return halved


def raw_rewards(rewards: Mapping[str, list[float | None]], names: Collection[str], count: int) -> dict[str, np.ndarray]:
    """The named rewards as float64 [N], NaN where one failed.

    Raises WireError for a reward that was not scored at all or not for every sample.
    """
    for name in names:
        if name not in rewards:
            raise WireError(f"rewards: got {sorted(rewards)}, expected also {name}, which this run names")
        if len(rewards[name]) != count:
            raise WireError(f"rewards of {name}: got {len(rewards[name])}, expected one per sample ({count})")
    return {name: np.array(rewards[name], dtype=float) for name in names}


def group_from_sample(
    sample: wire.ScoredGroup, objective: RewardObjective, latent_shape: tuple[int, int, int]
) -> ReplayGroup:
    """A checked group; raises WireError or NonFiniteError for one that must not be trained on."""
    tensors, _ = wire.unpack_tensors(sample.latents)
    count = len(sample.stages)
    latents = tensors.get("latents")
    if latents is None or latents.shape != (count, *latent_shape):
        got = sorted(tensors) if latents is None else list(latents.shape)
        raise WireError(f"latents: got {got}, expected one tensor `latents` {[count, *latent_shape]}")
    latents_NCHW = _as_float16(latents)
    rewards = raw_rewards(sample.rewards, objective.weights, count)
    check_product(rewards, objective)
    return ReplayGroup(
        group_id=sample.group_id,
        round=sample.round,
        index=sample.index,
        prompt=sample.prompt,
        num_steps_N=np.array(sample.stages, dtype=np.int64),
        rewards=rewards,
        latents_NCHW=latents_NCHW,
        policy_version=sample.policy_version,
        origins=origins_of(sample.seeds, sample.draws, sample.reference),
    )


def is_held_out(round: int, index: int, share: float) -> bool:
    """Whether a group is held out of training: about `share` of all groups, the same ones in every process.

    It depends on round and index and not on the id, so that a round that is sampled again has the same groups held out.
    """
    digest = hashlib.blake2b(f"{round}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class ReplayBuffer:
    """Groups of one run; safe to use from several threads.

    It keeps the newest `buffer_groups` training groups and the newest 30 held-out ones.
    """

    def __init__(self, buffer_groups: int, recent_groups: int, held_out_share: float) -> None:
        self.buffer_groups, self.recent_groups = buffer_groups, recent_groups
        self.held_out_share = held_out_share
        self._lock = threading.Lock()
        self._waiting: dict[str, ReplayGroup] = {}
        self._entered: set[str] = set()
        self._training: list[ReplayGroup] = []
        self._held_out: list[ReplayGroup] = []
        self._policy_version = 0

    def add(self, group: ReplayGroup) -> bool:
        """Keep an arrived group until `activate` names it; False for one that is known, which changes nothing."""
        with self._lock:
            if group.group_id in self._entered or group.group_id in self._waiting:
                return False
            self._waiting[group.group_id] = group
            return True

    def activate(self, group_ids: Sequence[str] = ()) -> list[str]:
        """Start training on the named groups that are waiting, or on all that are when none is named.

        Returns the ids of those that were activated.
        """
        with self._lock:
            names = [name for name in dict.fromkeys(group_ids or self._waiting) if name in self._waiting]
            for name in names:
                self._enter(self._waiting.pop(name))
        return names

    def mark_entered(self, group_ids: Iterable[str]) -> None:
        """Refuse these groups from now on: they were trained on, and may have left the buffer since."""
        with self._lock:
            self._entered.update(group_ids)

    def _enter(self, group: ReplayGroup) -> None:
        self._entered.add(group.group_id)
        self._policy_version = max(self._policy_version, group.policy_version)
        held_out = is_held_out(group.round, group.index, self.held_out_share)
        groups, limit = (self._held_out, HELD_OUT_GROUPS) if held_out else (self._training, self.buffer_groups)
        insort(groups, group, key=lambda other: other.order)
        if len(groups) > limit:
            del groups[0]

    def missing(self, group_ids: Iterable[str]) -> list[str]:
        """Which of the named groups have not arrived."""
        with self._lock:
            return [name for name in group_ids if name not in self._entered and name not in self._waiting]

    def named(self, group_ids: Iterable[str]) -> list[ReplayGroup]:
        """The named groups that are still kept, in order."""
        wanted = set(group_ids)
        with self._lock:
            kept = [group for group in (*self._training, *self._held_out) if group.group_id in wanted]
        return sorted(kept, key=lambda group: group.order)

    def draw(self, count: int, rng: np.random.Generator, from_all: bool = False) -> list[ReplayGroup]:
        """Up to `count` distinct groups in order: half of them from the `recent_groups` newest, half from all.

        With `from_all` there is no preference for new ones.
        """
        with self._lock:
            groups = list(self._training)
        recent = np.arange(0 if from_all else max(0, len(groups) - self.recent_groups), len(groups))
        newest = rng.permutation(recent)[: (count + 1) // 2]
        others = rng.permutation(np.setdiff1d(np.arange(len(groups)), newest))[: count - len(newest)]
        return [groups[i] for i in sorted([*newest, *others])]

    def scales(self, rewards: Iterable[str]) -> dict[str, Scale]:
        """Mean and standard deviation of each named reward over the training groups, whatever order they came in."""
        with self._lock:
            groups = list(self._training)
        return {name: scale_of([group.rewards[name] for group in groups]) for name in rewards}

    def totals(self, objective: RewardObjective, scales: Mapping[str, Scale]) -> list[Values]:
        """Totals of each training group, [N] float64; NaN where a reward failed or a guard vetoed the sample."""
        with self._lock:
            groups = list(self._training)
        return group_totals([group.rewards for group in groups], objective, scales)

    def held_out(self) -> list[ReplayGroup]:
        """Groups kept out of training, oldest first."""
        with self._lock:
            return list(self._held_out)

    def kept_ids(self) -> set[str]:
        """Ids of the groups trained on or held out."""
        with self._lock:
            return {group.group_id for group in (*self._training, *self._held_out)}

    @property
    def policy_version(self) -> int:
        """Updates of the generator before it made the newest group so far."""
        return self._policy_version

    @property
    def waiting_groups(self) -> int:
        return len(self._waiting)

    @property
    def training_groups(self) -> int:
        return len(self._training)
