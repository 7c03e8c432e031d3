"""Runs that begin from nothing with rewards that teach nothing, by the command line: what they say, and what they cost.

The rewards count their calls in a file, past all that the services know.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from lasro.config import RewardSettings
from lasro_client.cli.main import main
from lasro_client.run import least_budget, ranking
from lasro_client.services.local_stack import LocalStack

SCORERS = """
import hashlib
from pathlib import Path
from lasro.reward_sdk import RejectedItem, reward

def counted(name, images):
    with Path(__file__).with_name(name).open("a") as file:
        file.write("x" * len(images))

def share(image):
    return int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16) / 2**32

@reward
def constant(images, prompts, metadata):
    counted("constant", images)
    return [0.5 for _ in images]

@reward
def saturated(images, prompts, metadata):
    counted("saturated", images)
    return [0.2 if share(image) < 0.03 else 1.0 for image in images]

@reward
def noise(images, prompts, metadata):
    counted("noise", images)
    return [share(image) for image in images]

@reward
def failing_half(images, prompts, metadata):
    counted("failing_half", images)
    return [RejectedItem("no face") if share(image) < 0.5 else float(image.getpixel((8, 8))[0]) for image in images]
"""
NAMES = ("constant", "saturated", "noise", "failing_half")


class Command(NamedTuple):
    status: int | str
    said: str
    """The last line of stderr."""
    all_said: str


Train = Callable[..., Command]


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorers")
    (folder / "scorers.py").write_text(SCORERS)
    return folder


@pytest.fixture(scope="module")
def stack(scorers: Path) -> Iterator[LocalStack]:
    rewards = [RewardSettings(name=name, serve=f"scorers:{name}", import_path=scorers) for name in NAMES]
    with LocalStack(scorers / "stack", rewards) as stack:
        yield stack


@pytest.fixture
def train(
    stack: LocalStack,
    config_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Train:
    """`lasro train` of the reward, in the folder of that name, by services that are there."""
    text = config_path.read_text().replace("warmup_rounds = 1\n", "").replace("rounds = 4\nprompts_per", "prompts_per")
    text = text.replace('serve = "lasro_rewards.jpeg:incompressibility"\n', "")
    monkeypatch.setenv("LASRO_REWARD_API_URL", stack.reward_api)
    monkeypatch.setenv("LASRO_SURROGATE_TRAINER_URL", stack.surrogate_trainer)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's own stays

    def run(reward: str, *settings: str, out: str | None = None) -> Command:
        path = config_path.with_name(f"{reward}.toml")
        folder = tmp_path / (out or reward)
        named = text.replace("jpeg-incompressibility", reward).replace('name = "tiny"', f'name = "{folder.name}"')
        path.write_text(named)
        options = [part for setting in settings for part in ("--set", setting)]
        monkeypatch.setattr(sys, "argv", ["lasro", "train", str(path), "--out", str(folder), *options])
        capsys.readouterr()
        status: int | str = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        said = capsys.readouterr().err
        return Command(status, said.strip().split("\n")[-1], said)

    return run


@pytest.fixture
def calls(stack: LocalStack, scorers: Path) -> Callable[[str], int]:
    """Images that a reward has scored so far, by its own count."""

    def count(reward: str) -> int:
        return (scorers / reward).stat().st_size if (scorers / reward).exists() else 0

    return count


Calls = Callable[[str], int]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def changes_nothing(adapter: Path) -> bool:
    """Whether one factor of each product is zero."""
    tensors = load_file(adapter / "pytorch_lora_weights.safetensors")
    return all(not tensor.any() for name, tensor in tensors.items() if "lora_B" in name or "lora.up" in name)


def test_a_constant_reward_ends_the_run_after_its_first_round(train: Train, calls: Calls, tmp_path: Path) -> None:
    """Bug: eight rounds were paid for before a reward that is the same for every image was said to be so; or the
    untouched model's evaluation, or a second start, was paid for."""
    ended, folder = train("constant"), tmp_path / "constant"
    assert ended.status == 1
    assert ended.said.startswith(
        "lasro: nothing was learned: reward constant is 0.5 for all 18 images of the base and all perturbed ones: "
        "there is nothing to rank; check that it looks at the image"
    )
    found = summary(folder)
    assert found["rounds"] == 1
    assert found["ended"] in ended.said
    assert found["audit"] == json.loads((folder / "audit.json").read_text())
    assert (found["audit"]["ends"], found["audit"]["calls"]["of_the_audit"]) == (found["ended"], 0)
    assert changes_nothing(folder / "adapter")
    report = (folder / "report.html").read_text()
    assert "Nothing was learned" in report
    assert "100% of pairs tie" in report
    before = calls("constant")
    assert before <= 1 + 6 + 16, "the probe, the base's evaluation and a round: what was not changed is in the cache"
    again = train("constant")
    assert (again.status, again.said, calls("constant")) == (1, ended.said, before)


def test_where_there_is_nothing_to_gain_the_run_says_so(train: Train, calls: Calls, tmp_path: Path) -> None:
    """Bug: a run went on for hours over the few images that were not at the highest value yet."""
    ended = train("saturated", "train.prompts_per_round=3", "train.seeds_per_prompt=6")
    assert ended.status == 1
    assert "reward saturated is at its highest value, 1, for " in ended.said
    assert "there is nothing to gain; take harder prompts" in ended.said
    found = summary(tmp_path / "saturated")
    assert found["rounds"] == 1
    of_the_audit = found["audit"]["calls"]["of_the_audit"]
    assert of_the_audit == 16, "one group's, a second time"
    assert found["audit"]["within"]["repeat_variance"] == 0
    assert calls("saturated") == 1 + 6 + 6 * 16 + of_the_audit
    assert found["reward_calls"] == 6 * 16, "no budget counts what the audit asks for itself"


def test_half_of_a_reward_is_enough(train: Train, tmp_path: Path) -> None:
    """Bug: a reward that fails for some images ended the run, or was complained of in every round."""
    ended = train("failing_half", "train.rounds=4")
    assert ended.status == 0, ended.all_said
    assert ended.all_said.count("round 1: reward failing_half scored ") == 1
    assert "round 2: reward" not in ended.all_said
    found = summary(tmp_path / "failing_half")
    assert not found["nothing_learned"]
    assert 0 < found["audit"]["failed"] < found["audit"]["samples"] == 16
    assert "samples failed" in found["audit"]["notes"][0]


def test_noise_ends_the_run_with_an_adapter_that_changes_nothing(
    train: Train, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: status 0 and a table of rewards for a run that had found out that there is nothing to learn."""
    monkeypatch.setattr(ranking, "HOPELESS_ROUNDS", 2)  # that it takes 16 for sure is the schedule's own test
    monkeypatch.setattr(ranking, "HOPELESS_ACCURACY", 9.0)
    monkeypatch.setattr(ranking, "GOOD_ACCURACY", 9.0)
    ended, folder = train("noise"), tmp_path / "noise"
    assert ended.status == 1, ended.all_said
    assert ended.said.startswith("lasro: nothing was learned: the surrogate ranks ")
    assert "the reward looks like noise" in ended.said
    assert changes_nothing(folder / "adapter")
    found, before = summary(folder), calls("noise")
    assert (found["rounds"], found["audit"]["ends"]) == (2, None)
    assert before == 1 + 6 + 2 * 16 + 8, "the probe, the base's evaluation, two rounds, and the audit's group"
    again = train("noise")
    assert (again.status, again.said, calls("noise")) == (1, ended.said, before)


def test_a_budget_for_nothing_is_refused_before_anything_is_drawn(train: Train, calls: Calls, tmp_path: Path) -> None:
    """Bug: the base was drawn and scored, a round or two was paid for, and an untrained adapter called the result."""
    before = calls("constant")
    ended = train("constant", "budget.max_reward_calls=57", out="poor")
    assert (ended.status, ended.all_said.count("lasro:")) == (1, 1)
    assert (
        "budget.max_reward_calls: got 57, expected at least 58, for a round of ranking and 4 of training" in ended.said
    )
    assert calls("constant") == before
    assert not (tmp_path / "poor" / "evaluation").exists()


def test_minutes_for_nothing_are_refused_after_the_first_round(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a run of a few minutes spent them on ranking, and ended with an untrained adapter and status 0."""
    monkeypatch.setattr(least_budget, "FEWEST_WORTH", 10_000)
    ended = train("failing_half", "budget.max_minutes=5", "train.rounds=10000", out="hurried")
    assert ended.status == 1
    assert "budget.max_minutes: got 5, expected at least " in ended.said
    assert (tmp_path / "hurried" / "checkpoint").exists(), "with more minutes it goes on"
    assert not (tmp_path / "hurried" / "summary.json").exists()
