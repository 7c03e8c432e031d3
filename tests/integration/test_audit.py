"""`lasro rewards audit` against a real local stack: rewards of every kind, told apart by what they answer."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from lasro.config import RewardSettings
from lasro.errors import ConfigError, NotFoundError, RewardError
from lasro.wire import Protocol, RewardSpec
from lasro_client.cli.main import app
from lasro_client.services.local_stack import BUILT_IN_REWARDS, LocalStack
from lasro_client.services.reward_client import RewardClient

SCORERS = """
import random
from PIL import ImageStat
from lasro.reward_sdk import RejectedItem, reward

def bright(image):
    return ImageStat.Stat(image.convert("L")).mean[0] / 255

@reward
def constant(images, prompts, metadata):
    return [0.1] * len(images)

@reward
def lottery(images, prompts, metadata):
    return [random.random() for _ in images]

@reward
def partial(images, prompts, metadata):
    kinds = {"green": RejectedItem("no green"), "blue": 7.0}
    return [kinds.get(prompt.split()[1], bright(image)) for image, prompt in zip(images, prompts)]
"""
SERVED = tuple(RewardSettings(name=name, serve=f"scorers:{name}") for name in ("constant", "lottery", "partial"))
Audit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("stack")
    (folder / "scorers.py").write_text(SCORERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LASRO_REDIS_URL", raising=False)
        patch.delenv("LASRO_API_KEY", raising=False)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        with LocalStack(folder / "services", (BUILT_IN_REWARDS[0], *SERVED), trainer=False) as running:
            yield running


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red star\na green ring\na blue square\n")
    return path


@pytest.fixture
def audit(
    stack: LocalStack, tmp_path: Path, one_level_model_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> Audit:
    """The command itself, on the tiny model unless told otherwise; checks that what it prints is what it wrote."""

    def run(name: str, *options: str, model: str = str(one_level_model_path)) -> dict[str, Any]:
        out = tmp_path / name
        arguments = ["--reward-api", stack.reward_api, "--prompts", str(prompts), "--out", str(out), "--json"]
        arguments += ["--set", f"model.path={model}", "--set", "model.device=cpu", *options]
        app(["rewards", "audit", name, *arguments], standalone_mode=False)
        line = json.loads(capsys.readouterr().out)
        assert line == json.loads((out / "audit.json").read_text())
        picture = Image.open(io.BytesIO((out / "audit.png").read_bytes()))
        assert picture.width > 600
        return line

    return run


def levels(summary: dict[str, Any]) -> dict[str, str]:
    return {finding["name"]: finding["level"] for finding in summary["findings"]}


def test_a_detector_is_trainable(audit: Audit) -> None:
    """The reward of the demo was doubted, or its exact repeats came from the cache."""
    found = audit("attribute-binding", "--seeds", "4", model="bundled")
    assert found["trainable"] == "yes"
    assert found["spread"]["as_ranked"]["signal_share"] == 1
    assert found["ties"]["constant_groups"] == 0
    assert found["latency_s"]["median"] > 0
    assert found["cost"]["train"]["calls"] == 1912, "without a configuration the run is the demo"
    assert found["cost"]["train"]["scoring_s"] > 0
    assert found["mean"]["two_step"]["mean"] > found["mean"]["one_step"]["mean"]
    assert len(found["measured"]) == 3
    assert [len(row) for row in found["measured"][0]["one_step"]] == [2] * 4


def test_a_constant_teaches_nothing(audit: Audit) -> None:
    """Rounding of equal scores passed for spread, or a reward without any spread for trainable."""
    found = audit("constant")
    assert (found["trainable"], levels(found)) == ("no", {"constant": "no"})
    assert found["ties"]["equal_share"] == 1
    assert found["spread"]["as_ranked"]["best_pair_accuracy"] is None


def test_a_lottery_is_noise(audit: Audit) -> None:
    """The cache answered the repeats, so that chance looked like the finest reward of all."""
    found = audit("lottery", "--repeats", "4")
    assert found["trainable"] == "no"
    assert levels(found)["noise"] == "no"
    assert found["spread"]["as_ranked"]["best_pair_accuracy"] < 0.65


def test_failures_are_counted_and_never_numbers(audit: Audit, stack: LocalStack) -> None:
    """A rejected image counted as 0, a score out of range as it was, or either of them as a tie."""
    with RewardClient(stack.reward_api) as api:
        url = api.reward("partial").url
        api.register(RewardSpec(name="ranged", url=url, protocol=Protocol.NATIVE, range=(0, 1)))
    found = audit("ranged", "--seeds", "2", "--repeats", "2")
    assert found["failures"] | {"first_error": None} == {
        "measurements": 24,
        "failed": 16,
        "statuses": {"rejected": 8, "bad_reply": 8},
        "out_of_range": 8,
        "first_error": None,
    }
    scored = {entry["prompt"]: {value for row in entry["two_step"] for value in row} for entry in found["measured"]}
    assert scored["a green ring"] == scored["a blue square"] == {None}
    assert None not in scored["a red star"]
    assert found["mean"]["one_step"]["sem"] is None, "one prompt has a mean, and two have none"
    assert 0 < found["mean"]["one_step"]["mean"] < 1
    assert found["ties"]["groups"] == 1
    assert levels(found)["failures"] == "no"
    assert levels(found)["out_of_range"] == "note"


def test_rewards_that_cannot_be_asked_are_errors(audit: Audit, stack: LocalStack, tmp_path: Path) -> None:
    """An audit of a misspelt name or a dead server drew images first, or left files that look like a result."""
    with RewardClient(stack.reward_api) as api:
        api.register(RewardSpec(name="dead", url="http://127.0.0.1:1/", protocol=Protocol.NATIVE))
    with pytest.raises(RewardError, match="dead: unreachable"):
        audit("dead")
    with pytest.raises(NotFoundError, match="constnat"):
        audit("constnat")
    with pytest.raises(ConfigError, match="expected a name registered at"):
        audit("x=scorers:constant")
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_wrong_usage_is_refused(audit: Audit) -> None:
    """One repeat says nothing about noise, one seed nothing about spread."""
    for option in ("--repeats", "--seeds"):
        with pytest.raises(typer.BadParameter, match="greater than or equal to 2"):
            audit("constant", option, "1")


@pytest.mark.proof
def test_without_an_api_the_reward_is_served_for_the_audit(
    tmp_path: Path, one_level_model_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward that only the run's configuration knows could not be audited, or the exit status told the verdict."""
    (tmp_path / "scorers.py").write_text(SCORERS)
    (tmp_path / "run.toml").write_text(
        f'name = "x"\n[model]\npath = "{one_level_model_path}"\ndevice = "cpu"\n'
        f'[prompts]\ntrain = "{prompts}"\nheld_out = "{prompts}"\n'
        '[[rewards]]\nname = "mine"\nserve = "scorers:constant"\nweight = -0.5\n'
        '[surrogate]\ntie_margin_unit = "absolute"\n'
        "[train]\nrounds = 3\n[budget]\nmax_reward_calls = 30\n"
    )
    for variable in ("LASRO_REDIS_URL", "LASRO_API_KEY", "LASRO_REWARD_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    command = [sys.executable, "-m", "lasro_client.cli.main", "rewards", "audit", "mine", "--config", "run.toml"]
    result = subprocess.run([*command, "--count", "2", "--seeds", "2"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "mine, version 1: trainable: no" in result.stdout
    found = json.loads((tmp_path / "runs" / "audit-mine" / "audit.json").read_text())
    assert found["ties"]["margin"] == pytest.approx(0.04), "the tie margin is in units of the weighted total"
    assert found["cost"]["train"]["calls"] == 24 + 48 + 48
    assert levels(found) == {"constant": "no", "budget": "note"}
    assert "1 of 3 rounds" in result.stdout
