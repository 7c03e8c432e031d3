"""Every Redis key, in one place. One hash tag, so that all live in one cluster slot and scripts may span them.

Names of runs, groups and rewards match `wire.NAME_PATTERN`, which has no colon: no two keys can meet.
"""

from __future__ import annotations

PREFIX = "{lasro}:"

REWARDS = PREFIX + "rewards"
"""Hash: reward name -> version, a space, the spec as JSON."""
REWARD_VERSIONS = PREFIX + "reward-versions"
"""Hash: reward name -> last version given out; outlives the reward, so that no version is used twice."""
SCORE = PREFIX + "score:"
"""Prefix of cached scores."""
WORK = PREFIX + "work"
"""Stream: one entry (run, group) per group to be scored, of all runs."""
DEAD_WORK = PREFIX + "dead-work"
"""Stream: dead-lettered groups (run, group, reason, deliveries), and work entries that name no group."""
RUNS = PREFIX + "runs"
"""Set: names of the runs that groups were submitted to."""
EPOCH = PREFIX + "epoch"
"""String: drawn at random when it was absent; another value means that all keys were lost in between."""
WRITE_PROBE = PREFIX + "write-probe"
"""String: written by readiness checks to see whether writes are taken; gone after a second."""


def score(name: str, version: int, digest: bytes) -> bytes:
    """String: a cached score (float64, little-endian) of one item by one version of a reward; expires."""
    return f"{SCORE}{name}:{version}:".encode() + digest


def calls(run: str) -> str:
    """Hash: `spent` and `reserved` reward calls of a run."""
    return f"{PREFIX}run:{run}:calls"


def groups(run: str) -> str:
    """Set: ids of the groups submitted to a run."""
    return f"{PREFIX}run:{run}:groups"


def group(run: str, group_id: str) -> str:
    """Hash: digest, state, reserved, payload until scored, items afterwards, reason once dead-lettered."""
    return f"{PREFIX}run:{run}:group:{group_id}"


def samples(run: str) -> str:
    """Stream: scored groups for the trainer, each in the field `sample` or at the `blob` it names, and its `group`."""
    return f"{PREFIX}run:{run}:samples"


def dead_samples(run: str) -> str:
    """Stream: sample entries that could not be read, with the reason."""
    return f"{PREFIX}run:{run}:dead-samples"


def blob(run: str, sha256: str) -> str:
    """String: a sample too large for a stream entry, under the digest of its bytes."""
    return f"{PREFIX}run:{run}:blob:{sha256}"


def blobs(run: str) -> str:
    """Set: digests of the run's blobs."""
    return f"{PREFIX}run:{run}:blobs"
