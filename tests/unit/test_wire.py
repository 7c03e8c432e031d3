"""The messages between processes."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import WireError
from lasro.functional.reward_totals import Scale
from lasro.wire import Status, codec, groups, problem, rewards, surrogate, tensors
from lasro_surrogate_trainer.journal import Journal
from lasro_surrogate_trainer.request_bodies import read_run


def nested(levels: int) -> dict[str, Any]:
    """Objects within one another."""
    return {"a": nested(levels - 1)} if levels > 1 else {}


def test_every_message_is_found_in_the_package():
    """A message that is left out of `lasro.wire` breaks `from lasro.wire import X`."""
    for name in wire.__all__:
        assert hasattr(wire, name), name
    for module in (codec, groups, problem, rewards, surrogate, tensors):
        for name, value in vars(module).items():
            if callable(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                assert name in wire.__all__, name


def test_messages_and_what_services_share_import_no_torch():
    """A service that loads no model would take seconds and hundreds of megabytes more to start."""
    modules = "lasro.wire, lasro.config, lasro.errors, lasro.reward_sdk, lasro_reward_api.app"
    code = f"import sys, {modules}; print(sorted({{'torch', 'diffusers', 'transformers'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


GROUP = wire.ScoredGroup(
    group_id="g",
    round=3,
    index=1,
    prompt="a cat",
    policy_version=2,
    stages=[1, 2],
    rewards={"r": [0.5, None]},
    versions={"r": 1},
    latents=b"bytes",
)


def test_a_group_that_release_0_1_wrote_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """Bug: after an upgrade, what waits on the stream and in the journal is refused for its field `scores`."""
    groups._warn_of_scores.cache_clear()
    old = {"scores" if name == "rewards" else name: value for name, value in GROUP.model_dump().items()}
    with caplog.at_level(logging.WARNING):
        assert wire.from_msgpack(wire.ScoredGroup, wire.to_msgpack(old)) == GROUP
        assert wire.from_msgpack(wire.ScoredGroup, wire.to_msgpack(old)) == GROUP
    assert [record.getMessage() for record in caplog.records] == [
        "a scored group has the field `scores`, which is named `rewards` since 0.2; 0.3 will not read it"
    ]
    assert b"scores" not in wire.to_msgpack(GROUP)


def test_a_journal_of_release_0_1_is_read(tmp_path: Path) -> None:
    """Bug: after an upgrade a trainer cannot open the runs on its disk."""
    journal = Journal(tmp_path)
    journal.add_groups(1, [GROUP])
    [written] = (tmp_path / "groups").iterdir()
    old = {"scores" if name == "rewards" else name: value for name, value in GROUP.model_dump().items()}
    written.write_bytes(wire.to_msgpack({"samples": [old]}))
    assert journal.groups(1) == [GROUP]


ORIGINS = {"seeds": [0, 0], "draws": [0, 1], "reference": [False, True]}


def test_groups_that_do_not_say_what_made_their_samples_are_read(tmp_path: Path) -> None:
    """Bug: after an upgrade what earlier releases wrote, or another client posts, is refused."""
    old = {name: value for name, value in GROUP.model_dump().items() if name not in ORIGINS}
    assert wire.from_msgpack(wire.ScoredGroup, wire.to_msgpack(old)) == GROUP
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "00000001.msgpack").write_bytes(wire.to_msgpack({"samples": [old]}))
    assert Journal(tmp_path).groups(1) == [GROUP]
    assert (GROUP.seeds, GROUP.draws, GROUP.reference) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0]}, r"seeds: got 1, expected one per stage entry \(2\)"),
        ({"draws": [0, 0, 0]}, "draws: got 3, expected one per stage entry"),
        ({"reference": []}, "reference: got 0, expected one per stage entry"),
        ({"draws": [1, 0]}, r"draws: got \[1, 0\] for stages \[1, 2\], expected 0 for one-step samples"),
        ({"seeds": [0, -1]}, "greater than or equal to 0"),
    ],
)
def test_what_made_the_samples_is_said_of_each_sample(change: dict[str, Any], message: str) -> None:
    """Bug: pairs of other samples than those that were compared, or an index error in the training thread."""
    with pytest.raises(WireError, match=message):
        wire.from_msgpack(wire.ScoredGroup, wire.to_msgpack(GROUP.model_dump() | ORIGINS | change))


def test_a_group_with_both_names_is_refused() -> None:
    """Bug: of two different lists of rewards one is taken in silence."""
    both = GROUP.model_dump() | {"scores": {"r": [0.1, 0.2]}}
    with pytest.raises(WireError, match="scores"):
        wire.from_msgpack(wire.ScoredGroup, wire.to_msgpack(both))


STATISTICS = wire.AdaptStatistics(
    loss=None,
    pair_accuracy=1,
    fresh_pair_accuracy=None,
    held_out_pair_accuracy=None,
    reward_gap=None,
    pairs=1,
    constant_groups=0,
    failed_samples=0,
    accuracy_by_kind={"same_z1": wire.KindAccuracy(accuracy=1, pairs=3)},
    scales={"r": Scale(1.5, 2.0)},
    stale_groups=0,
    duration_s=1,
)
REWARD: dict[str, Any] = {"name": "r", "url": "http://127.0.0.1/", "protocol": "native"}


@pytest.mark.parametrize(
    "message",
    [
        GROUP,
        GROUP.model_copy(update=ORIGINS),
        wire.RewardSpec.model_validate(REWARD | {"range": (0, 1), "mapping": {"a": [1, None, "b"]}}),
        wire.ScoreReply(items=[wire.ScoredItem(scores={"r": wire.RewardValue(score=1, status=Status.OK)}, total=1)]),
        wire.GroupStatus(group_id="g", state=wire.GroupState.DEAD, reward_calls=0),
        wire.AdaptReply(version=1, statistics=STATISTICS),
    ],
)
def test_messages_come_back_from_both_forms(message: wire.Message) -> None:
    """Bug: what refuses text for a number refuses the name of an enum, or a map where msgpack has no dataclass."""
    assert wire.from_json(type(message), wire.to_json(message)) == message
    assert wire.from_msgpack(type(message), wire.to_msgpack(message)) == message


@pytest.mark.parametrize(
    ("kind", "change", "detail"),
    [
        (wire.RewardSpec, {"cache": "yes"}, "cache: Input should be a valid boolean, got str"),
        (wire.RewardSpec, {"cache": "false"}, "cache: Input should be a valid boolean, got str"),
        (wire.RewardSpec, {"cache": 1}, "cache: Input should be a valid boolean, got int"),
        (wire.RewardSpec, {"signed_replies": "on"}, "signed_replies: Input should be a valid boolean, got str"),
        (wire.RewardSpec, {"timeout_s": "30"}, "timeout_s: Input should be a valid number, got str"),
        (wire.RewardSpec, {"timeout_s": True}, "timeout_s: Input should be a valid number, got bool"),
        (wire.RewardSpec, {"max_batch": "8"}, "max_batch: Input should be a valid integer, got str"),
        (wire.RewardSpec, {"repeats": True}, "repeats: Input should be a valid integer, got bool"),
        (wire.RewardSpec, {"range": ["0", 1]}, "range.0: Input should be a valid number, got str"),
        (wire.RewardSpec, {"headers": {"X-A": 1}}, "headers.X-A: Input should be a valid string, got int"),
        (wire.ScoreRequest, {"fresh": "no"}, "fresh: Input should be a valid boolean, got str"),
        (wire.ScoreRequest, {"objective": {"r": "1"}}, "objective.r: Input should be a valid number, got str"),
        (wire.Lease, {"version": "3"}, "version: Input should be a valid integer, got str"),
        (wire.AdaptRequest, {"steps": "4"}, "steps: Input should be a valid integer, got str"),
    ],
)
def test_nothing_is_made_of_another_type(kind: type[wire.Message], change: dict[str, Any], detail: str) -> None:
    """Bug: `"cache": "yes"` and 1 were taken for true, and text for numbers, so that a mistake was guessed at."""
    whole: dict[type[wire.Message], dict[str, Any]] = {
        wire.RewardSpec: REWARD,
        wire.ScoreRequest: {"prompts": ["a"], "images": [""], "rewards": ["r"]},
        wire.Lease: {"version": 1},
        wire.AdaptRequest: {"request_id": "r", "new_groups": [], "steps": 1},
    }
    wire.from_json(kind, json.dumps(whole[kind]))
    for read in (
        lambda fields: wire.from_json(kind, json.dumps(fields)),
        lambda fields: wire.from_msgpack(kind, msgpack.packb(fields) or b""),
    ):
        with pytest.raises(WireError, match=re.escape(detail)):
            read(whole[kind] | change)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"headers": {f"X-{number}": "" for number in range(20_000)}}, "got 20000 headers, expected at most 64"),
        ({"headers": {"X-A": "é" * 10_000}}, "got 20003 bytes of names and values, expected at most 16384"),
        ({"headers": {"X" * 20_000: ""}}, "got 20000 bytes of names and values, expected at most 16384"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "got 'x-a' in two spellings, expected each header once"),
        ({"mapping": {"a": "b" * (1 << 20)}}, "got 1048584 bytes as JSON, expected at most 65536"),
        ({"mapping": {str(number): 0 for number in range(10_000)}}, "bytes as JSON, expected at most 65536"),
        ({"mapping": nested(41)}, "got more than 40 levels, expected fewer"),
        ({"mapping": {"a": [[nested(39)]]}}, "got more than 40 levels, expected fewer"),
        ({"url": "http://a/" + "b" * 2048}, "url: String should have at most 2048 characters"),
        ({"secret": "b" * 257}, "secret: String should have at most 256 characters"),
    ],
)
def test_a_registered_reward_is_small(change: dict[str, Any], detail: str) -> None:
    """Bug: a mapping of 30 MB and 20,000 headers were stored, and read again at each request."""
    with pytest.raises(WireError, match=re.escape(detail)) as caught:
        wire.from_json(wire.RewardSpec, json.dumps(REWARD | change))
    assert len(str(caught.value)) < 400
    with pytest.raises(WireError, match=re.escape(detail)):
        wire.from_msgpack(wire.RewardSpec, msgpack.packb(REWARD | change) or b"")


def test_a_reward_of_the_largest_size_is_taken() -> None:
    """Bug: a limit that keeps out what people have."""
    headers = {f"X-{number}": "a" * 200 for number in range(64)}
    most = REWARD | {"headers": headers, "mapping": {"request": nested(39), "text": "b" * 60_000}}
    assert wire.from_json(wire.RewardSpec, json.dumps(most)).headers == headers


def test_the_settings_of_a_run_are_as_strict() -> None:
    """Bug: a run was trained with another seed, weight or switch than its client's text said."""
    config = SurrogateRun(weights={"r": 1.0}, normalised=("r",))
    assert read_run(config.model_dump_json().encode()) == config
    for change, detail in (
        ({"weights": {"r": "1"}}, "weights.r: Input should be a valid number, got str"),
        ({"surrogate": {"seed": "7"}}, "surrogate.seed: Input should be a valid integer, got str"),
        ({"surrogate": {"rank_within_num_steps": 1}}, "Input should be a valid boolean, got int"),
        ({"weights": {f"r{number}": 1 for number in range(33)}}, "at most 32 items"),
    ):
        with pytest.raises(WireError, match=re.escape(detail)):
            read_run(json.dumps({"weights": {"r": 1}} | change).encode())
