"""What is said of prompts before anything starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_sd15 import write_tiny_sd15

from lasro.config import ModelSettings, RunSettings
from lasro.errors import ConfigError, PromptTooLongError
from lasro.training.distributed import DistributedContext
from lasro.training.prompt_checks import check_prompts
from lasro.training.prompts import read_prompt_file
from lasro_client.cli.main import app
from lasro_client.run.run_prompts import read_run_prompts
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train

LONG = "a red circle and " * 12 + "a star"
LIMIT = 32
"""Tokens that the tiny models take."""


def write(path: Path, *prompts: str) -> Path:
    path.write_text("\n".join(prompts) + "\n")
    return path


def long_tokenizer(model: Path, folder: Path, name: str) -> Path:
    """A copy without weights, one of whose tokenizers names no limit."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = folder / name / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 10**30}))
    return folder


@pytest.mark.parametrize("names", [("tokenizer",), ("tokenizer_2",), ("tokenizer", "tokenizer_2")])
def test_the_first_long_prompts_are_named_by_line_without_loading_weights(
    one_level_model_path: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Bug: a run died in round 10 of a prompt that the second tokenizer alone found too long, or went on with none."""
    model = one_level_model_path
    for name in names:
        model = long_tokenizer(model, tmp_path / f"without-{name}", name)
    file = read_prompt_file(write(tmp_path / "p.txt", "a disc", LONG, "", *[f"{LONG} {i}" for i in range(8)], "a star"))
    with pytest.raises(PromptTooLongError) as caught:
        check_prompts([file], ModelSettings(path=str(model)))
    message = str(caught.value)
    assert message.startswith(f"{file.path}:2: got ")
    assert f"tokens, expected at most {LIMIT} ('a red circle and" in message
    assert all(f"{file.path}:{line} (" in message for line in range(4, 9))
    assert message.endswith(" and 3 more")


def test_the_tokenizer_of_sd15_counts_too(tmp_path: Path) -> None:
    """Bug: only the family with two tokenizers is checked, or the check wants the second one of every model."""
    model = ModelSettings(path=str(write_tiny_sd15(tmp_path / "sd15")))
    assert check_prompts([read_prompt_file(write(tmp_path / "a.txt", "a disc"))], model) == []
    with pytest.raises(PromptTooLongError, match=r"b\.txt:1: got "):
        check_prompts([read_prompt_file(write(tmp_path / "b.txt", LONG))], model)


def test_metadata_that_cannot_be_sent_is_named_by_line(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: a number of more than 64 bits was a traceback in whichever round drew its prompt."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 100000000000000000000}\n')
    with pytest.raises(ConfigError, match=r"p\.jsonl:2: metadata: Integer value out of range"):
        check_prompts([read_prompt_file(tmp_path / "p.jsonl")], ModelSettings(path=str(one_level_model_path)))


def test_what_repeats_or_looks_like_a_comment_is_no_error_but_said(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: a list pasted twice, or headings among the prompts, trained on without a word."""
    file = read_prompt_file(write(tmp_path / "p.txt", "a disc", "# stars", "a disc", "a star", "a star", "#1 fan"))
    twice, comment = check_prompts([file], ModelSettings(path=str(one_level_model_path)))
    assert twice.startswith(f"{file.path}:1: 2 of the prompts stand in the file more than once, such as 'a disc'")
    assert comment.startswith(f"{file.path}:2: '# stars' is taken as a prompt")


def settings(folder: Path, model: Path, **prompts: Any) -> RunSettings:
    write(folder / "train.txt", "a red star", "a ring")
    write(folder / "held-out.txt", "a blue star", "a ring")
    files = {"train": folder / "train.txt", "held_out": folder / "held-out.txt"} | prompts
    return RunSettings.model_validate(
        {"name": "checked", "model": {"path": str(model)}, "prompts": files, "rewards": [{"name": "any"}]}
    )


@pytest.mark.parametrize("stage", [train, pretrain])
@pytest.mark.parametrize("setting", ["train", "held_out", "drift"])
def test_a_run_ends_before_it_starts_anything(
    one_level_model_path: Path, tmp_path: Path, stage: Callable[[RunSettings, Path], object], setting: str
) -> None:
    """Bug: one long prompt ended a run in round 10, one of drift after its last evaluation."""
    long = write(tmp_path / "long.txt", "a disc", LONG)
    model = long_tokenizer(one_level_model_path, tmp_path / "without-weights", "tokenizer")
    with pytest.raises(PromptTooLongError, match=f"{long}:2: got "):
        stage(settings(tmp_path, model, **{setting: long}), tmp_path / "run")
    assert not (tmp_path / "run" / "services").exists()


def test_prompts_that_are_trained_on_and_measured_on_are_a_warning(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: a gain on held-out prompts that were trained on, reported as if it would hold for others."""
    config = settings(tmp_path, one_level_model_path)
    (warning,) = read_run_prompts(config, tmp_path / "run", DistributedContext()).check(config)
    assert warning.startswith(f"{config.prompts.held_out}:2: 1 of 2 prompts stand in {config.prompts.train} too")


@pytest.mark.parametrize("command", ["generate", "evaluate", "rewards audit", "demo"])
def test_commands_that_draw_refuse_a_long_prompt_by_line(
    one_level_model_path: Path, tmp_path: Path, command: str
) -> None:
    """Bug: services were started and the model loaded first, and the message did not say where the prompt stands."""
    long = write(tmp_path / "long.txt", "a disc", LONG)
    options = {
        "generate": ["--out", str(tmp_path / "out"), "--model", str(one_level_model_path)],
        "evaluate": ["--reward", "any", "--model", str(one_level_model_path)],
        "rewards audit": ["any", "--set", f"model.path={one_level_model_path}"],
        "demo": ["--from-scratch", "--set", f"prompts.drift={long}", "--out", str(tmp_path / "out")],
    }[command]
    prompts = [] if command == "demo" else ["--prompts", str(long)]
    with pytest.raises(PromptTooLongError, match=f"{long}:2: got "):
        app([*command.split(), *prompts, *options], standalone_mode=False)
    assert not (tmp_path / "out").exists()
