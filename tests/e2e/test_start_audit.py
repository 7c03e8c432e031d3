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

from lasro.config import RewardSettings
from lasro_client.cli.main import main
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
    return [RejectedItem("no face") if share(image) < 0.5 else float(image.convert("L").getpixel((8, 8))) for image in images]
"""
NAMES = ("constant", "saturated", "noise", "failing_half")


class Command(NamedTuple):
    status: int | str
    said: str
    """The last line of stderr."""
    all_said: str


Train = Callable[..., Command]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("scorers")
    (folder / "scorers.py").write_text(SCORERS)
    rewards = [RewardSettings(name=name, serve=f"scorers:{name}", import_path=folder) for name in NAMES]
    with LocalStack(folder / "stack", rewards) as stack:
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
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        return Command(ended.value.code or 0, said.strip().split("\n")[-1], said)

    return run


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_a_constant_reward_ends_the_run_after_its_first_round(train: Train, tmp_path: Path) -> None:
    """Bug: eight rounds were paid for before a reward that is the same for every image was said to be so."""
    ended = train("constant")
    print(ended.all_said)
    assert ended.status == 1
