"""A run whose trainer is a thread of its client, against one whose trainer is a process: the same bytes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest
from lives import run_with

from lasro.config import load_config
from lasro.models import frozen
from lasro.wire import unpack_tensors
from lasro_client.run import stage1, stage2
from lasro_client.run.observer import Observer
from lasro_client.run.round_record import RoundRecord

IN_PROCESS = "services.in_process_trainer=true"
FEW = ["train.rounds=2", "evaluation.prompts=1", "evaluation.drift_prompts=0", "train.checkpoint_rounds=1"]
NOT_COMPARED = {"elapsed_s", "reward_versions", "reward_calls"}
"""Of a round: those of a run that was killed differ, since rewards are served elsewhere and a round is repeated."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a trainer that is a process, as of the tests: the last bits of a sum are those of the number of threads."""
    monkeypatch.setenv("LASRO_TORCH_THREADS", "1")
    monkeypatch.delenv("LASRO_REDIS_URL", raising=False)


def results(folder: Path) -> list[object]:
    """What a run leaves: its rounds but for their times, adapter, surrogate, and the trainer's weights."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rounds = [{key: value for key, value in line.items() if key not in NOT_COMPARED} for line in lines]
    weights = sorted((folder / "services" / "surrogate_trainer").glob("runs/*/weights/*"))
    adapter = folder / "adapter" / "pytorch_lora_weights.safetensors"
    files = [adapter, folder / "surrogate.safetensors", *weights]
    tensors = [unpack_tensors(path.read_bytes())[0] for path in files if path.exists()]  # headers have any order
    return [rounds, *({name: array.tobytes() for name, array in found.items()} for found in tensors)]


class Processes(Observer):
    """Notes the modules that this process' children run, after each round."""

    def __init__(self) -> None:
        self.modules: set[str] = set()

    def round_done(self, record: RoundRecord) -> None:
        for child in psutil.Process().children(recursive=True):
            self.modules |= set(child.cmdline())


@pytest.mark.proof
@pytest.mark.parametrize("mode", ["weights", "gradient"])
def test_a_trainer_in_the_clients_process_gives_the_same_bytes(
    mode: str, config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a trainer that computes with the generator's adapter, or a model that is loaded twice."""
    settings, seen = [*FEW, f"train.mode={mode}"], Processes()
    stage2.train(load_config(config_path, settings), tmp_path / "processes")
    monkeypatch.setattr(frozen, "load_trunk", lambda _: pytest.fail("a second model was loaded"))
    stage2.train(load_config(config_path, [*settings, IN_PROCESS]), tmp_path / "thread", [seen])
    assert results(tmp_path / "thread") == results(tmp_path / "processes")
    assert "lasro_reward_api" in seen.modules
    assert "lasro_surrogate_trainer" not in seen.modules


@pytest.mark.proof
def test_stage_1_has_the_same_bytes_too(config_path: Path, tmp_path: Path) -> None:
    """Guards against a probe generator whose adapter reaches the surrogate that is trained beside it."""
    for name, settings in (("processes", []), ("thread", [IN_PROCESS])):
        stage1.pretrain(load_config(config_path, settings), tmp_path / name)
    assert results(tmp_path / "thread") == results(tmp_path / "processes")


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_a_killed_run_ends_with_the_same_bytes(config_path: Path, tmp_path: Path) -> None:
    """Bug: client and trainer die together, in the middle of a step, and what was not yet on disk is missing, trained
    on twice, or paid for twice. The third life has a trainer of its own process over the same journal."""
    settings, folder = ["train.rounds=6", "train.prompts_per_round=2"], tmp_path / "run"
    assert run_with("none", 0, config_path, tmp_path / "whole", settings) == 0
    assert run_with("adapting", 3, config_path, folder, [*settings, IN_PROCESS]) == -signal.SIGKILL
    assert run_with("checkpointed", 4, config_path, folder, [*settings, IN_PROCESS]) == -signal.SIGKILL
    assert run_with("sampling", 5, config_path, folder, settings) == -signal.SIGKILL
    assert run_with("none", 0, config_path, folder, [*settings, IN_PROCESS, "model.max_batch=2"]) == 0
    assert results(folder)[:2] == results(tmp_path / "whole")[:2]
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (folder, tmp_path / "whole"))
    assert ours["reward_calls"] == theirs["reward_calls"], "no reward was paid for twice"
