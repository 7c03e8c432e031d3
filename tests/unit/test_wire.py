"""The messages between processes."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from lasro import wire
from lasro.errors import WireError
from lasro.wire import codec, groups, problem, rewards, surrogate, tensors
from lasro_surrogate_trainer.journal import Journal


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


def test_a_group_with_both_names_is_refused() -> None:
    """Bug: of two different lists of rewards one is taken in silence."""
    both = GROUP.model_dump() | {"scores": {"r": [0.1, 0.2]}}
    with pytest.raises(WireError, match="scores"):
        wire.from_msgpack(wire.ScoredGroup, wire.to_msgpack(both))
