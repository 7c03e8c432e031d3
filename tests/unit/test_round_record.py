"""Records of rounds, and their lines in log.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lasro.errors import WireError
from lasro.functional.reward_totals import Scale
from lasro.wire import KindAccuracy
from lasro_client.run.round_record import (
    GeneratorRecord,
    HealthRecord,
    RewardRecord,
    RoundRecord,
    SurrogateRecord,
    from_json,
    read_log,
    to_json,
)
from lasro_client.services.failures import Failure

TRAIN = RoundRecord(
    stage="train",
    round=3,
    num_rounds=8,
    elapsed_s=12.5,
    rewards=RewardRecord(
        rewards={"binding": {1: 0.25, 2: None}},
        total={1: 0.25, 2: 0.5},
        vetoed={1: 0.0, 2: 0.5},
        reference={1: 0.2, 2: 0.4},
        gain={1: 0.05, 2: 0.1},
        versions={"binding": 2},
        samples=24,
        scored_samples=20,
        failures={"binding": Failure(4, 24, {"timeout": 4}, "timeout", "no reply within 30 s")},
    ),
    surrogate=SurrogateRecord(
        loss=0.6,
        pair_accuracy=0.7,
        fresh_pair_accuracy=0.65,
        reward_gap=0.4,
        accuracy_by_kind={"same_z1": KindAccuracy(accuracy=0.75, pairs=8)},
        stale_groups=1,
        ranked_pairs=60,
        tied_pairs=6,
        spread=0.25,
        tie_margin=0.005,
        scales={"binding": Scale(0.1, 0.2)},
        version=9,
    ),
    generator=GeneratorRecord({1: 0.1, 2: 0.2}, {1: 1.5, 2: -0.5}, 0.3, 1e-5, 0.7),
    reward_calls=96,
    policy_version=4,
    unranked_rounds=0,
    health=HealthRecord("the reward fell", "roll_back"),
)
KEYS = [
    "stage", "round", "rounds", "elapsed_s", "phase", "restarts", "event", "reward", "total", "vetoed", "reference",
    "gain", "reward_versions", "samples", "scored_samples", "failures", "drift", "score", "loss", "regulariser",
    "grad_norm", "distance", "drift_target", "regulariser_weight", "bt_loss", "pair_accuracy", "fresh_pair_accuracy",
    "held_out_pair_accuracy", "reward_gap", "accuracy_by_kind", "stale_groups", "constant_groups", "ranked_pairs",
    "tied_pairs", "spread", "tie_margin", "failed_samples", "scales", "surrogate_version", "reward_calls",
    "policy_version", "unranked_rounds", "trouble", "action",
]  # fmt: skip
OF_THE_GENERATOR = {
    "drift", "score", "loss", "regulariser", "grad_norm", "distance", "drift_target", "regulariser_weight", "phase",
    "restarts", "event", "trouble", "action",
}  # fmt: skip


def test_a_line_has_the_keys_that_outside_programs_read_and_gives_the_record_back() -> None:
    """Guards against a key that is renamed with a field, and a value that a resumed report no longer shows."""
    line = to_json(TRAIN)
    assert list(json.loads(line)) == KEYS
    assert json.loads(line)["reward"] == {"binding": {"one_step": 0.25, "two_step": None}}
    assert json.loads(line)["scales"] == {"binding": {"mean": 0.1, "deviation": 0.2}}
    failure = {"samples": 4, "of": 24, "statuses": {"timeout": 4}, "status": "timeout", "error": "no reply within 30 s"}
    assert json.loads(line)["failures"] == {"binding": failure}
    assert from_json(line) == TRAIN


def test_stage_one_logs_nothing_of_a_generator() -> None:
    """Guards against a stage 1 whose log looks as if a generator had been trained, with every value null."""
    record = RoundRecord("pretrain", 0, rewards=TRAIN.rewards, surrogate=TRAIN.surrogate)
    assert list(json.loads(to_json(record))) == [key for key in KEYS if key not in OF_THE_GENERATOR]
    assert from_json(to_json(record)) == record


def test_old_lines_are_read() -> None:
    """Guards against a run of version 0.1 whose report loses the base's curve, or fails, once it is resumed."""
    line = json.loads(to_json(TRAIN))
    line["beside"] = line.pop("reference")
    assert from_json(json.dumps(line)) == TRAIN
    bare = from_json('{"stage": "train", "round": 2}')
    assert (bare.round, bare.rewards.total, bare.surrogate.loss) == (2, {1: None, 2: None}, None)


@pytest.mark.parametrize(
    "line", ["", "[1]", '{"round": 1}', '{"stage": "train", "round": "x"}', '{"stage": "train", "r']
)
def test_what_is_no_record_is_named_in_one_line(line: str) -> None:
    """Guards against a traceback of the JSON or validation library."""
    with pytest.raises(WireError, match=r"^log\.jsonl: ") as raised:
        from_json(line)
    assert "\n" not in str(raised.value)


def test_a_number_that_is_not_finite_is_not_logged() -> None:
    """Guards against NaN in log.jsonl, which is not JSON and which other programs refuse."""
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(RoundRecord("train", 0, elapsed_s=float("nan")))


def test_a_log_counts_a_repeated_round_once_and_passes_over_half_lines(tmp_path: Path) -> None:
    """Guards against a resumed run that seems longer than it is, and a killed one that cannot be read."""
    rounds = [RoundRecord("train", round, reward_calls=calls) for calls, round in enumerate([0, 1, 2, 1])]
    text = "\n".join(map(to_json, rounds)) + '\n{"stage": "tra'
    (tmp_path / "log.jsonl").write_text(text)
    assert [(record.round, record.reward_calls) for record in read_log(tmp_path / "log.jsonl")] == [
        (0, 0),
        (2, 2),
        (1, 3),
    ]
    assert read_log(tmp_path / "absent.jsonl") == []
